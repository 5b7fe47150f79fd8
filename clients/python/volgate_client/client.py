"""The client: the services' stubs, plus what every caller needs around them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc

from volgate.v1 import (
    attachment_pb2_grpc,
    host_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    pool_pb2_grpc,
    snapshot_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from volgate_client.errors import VolgateError, from_rpc

__all__ = ["Client"]

Progress = Callable[[int, int], None]
_CHUNK = 1 << 20
_RUNNING = (operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING, operation_pb2.OPERATION_STATE_IN_DOUBT)


class Client:
    """One connection to a gateway, usable from many threads.

    `call` runs one method with retries: UNAVAILABLE, and ABORTED of an operation in doubt, are repeated with the same
    request_id until `timeout` seconds have passed.
    """

    def __init__(self, address: str, *, timeout: float = 60.0) -> None:
        """`address` is gRPC's, such as unix:/run/volgate/volgate.sock; `timeout` bounds each call with its retries, seconds."""
        self.timeout = timeout
        options = [("grpc.max_receive_message_length", 16 << 20)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.pools = pool_pb2_grpc.PoolServiceStub(self.channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self.channel)
        self.snapshots = snapshot_pb2_grpc.SnapshotServiceStub(self.channel)
        self.attachments = attachment_pb2_grpc.AttachmentServiceStub(self.channel)
        self.hosts = host_pb2_grpc.HostServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def call(self, method: Callable[..., Any], request: Any, *, timeout: float | None = None) -> Any:
        """Call a stub's method. Raises VolgateError; a mutation without a request_id gets one, so that a retry is the same call."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = str(uuid.uuid4())
        deadline = time.monotonic() + (timeout or self.timeout)
        pause = 0.1
        while True:
            try:
                return method(request, timeout=max(0.05, deadline - time.monotonic()))
            except grpc.RpcError as error:
                ours = from_rpc(error)
                wait = ours.retry_after or pause
                if ours.code not in ("UNAVAILABLE", "ABORTED") or time.monotonic() + wait >= deadline:
                    raise ours from error
            time.sleep(wait)
            pause = min(pause * 2, 2.0)

    def wait(
        self, operation: operation_pb2.Operation, *, timeout: float, progress: Callable[[float], None] | None = None
    ) -> operation_pb2.Operation:
        """Follow an operation to its end. Raises VolgateError if it failed, or DEADLINE_EXCEEDED after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while operation.state in _RUNNING:
            try:
                request = operation_pb2.WatchOperationRequest(name=operation.name)
                for answer in self.operations.WatchOperation(request, timeout=max(0.05, deadline - time.monotonic())):
                    operation = answer.operation
                    if progress:
                        progress(operation.progress)
            except grpc.RpcError as error:
                ours = from_rpc(error)
                if ours.code != "UNAVAILABLE" or time.monotonic() + 0.2 >= deadline:
                    raise ours from error
                time.sleep(0.2)
        if operation.state != operation_pb2.OPERATION_STATE_DONE:
            failure = VolgateError("FAILED_PRECONDITION", operation.error_message or "the operation was cancelled")
            failure.reason, failure.operation = operation.error_reason, operation.name
            raise failure
        return operation

    def pages(self, method: Callable[..., Any], request: Any, field: str) -> Iterator[Any]:
        """Every row of a list, page by page."""
        while True:
            answer = self.call(method, request)
            yield from getattr(answer, field)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def import_file(
        self, header: volume_pb2.ImportHeader, path: Path | None, *, progress: Progress | None = None, timeout: float = 3600.0
    ) -> Any:
        """Send an image (None: the header names a path on the server) and wait until it is a volume; return the volume."""
        header.request_id = header.request_id or str(uuid.uuid4())
        try:
            answer = self.volumes.ImportVolume(_parts(header, path, progress), timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        if not answer.HasField("volume"):
            self.wait(answer.operation, timeout=timeout)
            name = f"{header.pool}/volumes/{header.volume_id}"
            return self.call(self.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=name)).volume
        return answer.volume

    def export_file(
        self, request: volume_pb2.ExportVolumeRequest, path: Path, *, progress: Progress | None = None, timeout: float = 3600.0
    ) -> int:
        """Write the content of a volume or snapshot to a new sparse file; return its size in bytes."""
        total = 0
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as stream:
                for piece in self.volumes.ExportVolume(request, timeout=timeout):
                    total = piece.total_bytes
                    stream.seek(piece.offset)
                    stream.write(piece.chunk)
                    if progress:
                        progress(piece.offset + len(piece.chunk), total)
                stream.truncate(total)
        except grpc.RpcError as error:
            partial.unlink(missing_ok=True)
            raise from_rpc(error) from error
        partial.replace(path)
        return total


def _parts(header: volume_pb2.ImportHeader, path: Path | None, progress: Progress | None) -> Iterator[volume_pb2.ImportVolumeRequest]:
    yield volume_pb2.ImportVolumeRequest(header=header)
    if path is None:
        return
    total, sent = path.stat().st_size, 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield volume_pb2.ImportVolumeRequest(chunk=chunk)
            sent += len(chunk)
            if progress:
                progress(sent, total)
