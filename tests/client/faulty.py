"""A gRPC server that answers with the statuses it is told to, for failures that a real gateway cannot be made to give on demand."""

from __future__ import annotations

import threading
from concurrent import futures
from pathlib import Path
from typing import Self

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from volgate.v1 import volume_pb2, volume_pb2_grpc


class Faulty(volume_pb2_grpc.VolumeServiceServicer):
    """Fails `CreateVolume` with each of `failures` in turn, then succeeds; keeps the requests and their metadata."""

    def __init__(self, path: Path, failures: list[status_pb2.Status], slow: float = 0.0) -> None:
        self.address = f"unix:{path}"
        self.failures = failures
        self.slow = slow  # seconds before an answer, unless the caller goes away
        self.requests: list[volume_pb2.CreateVolumeRequest] = []
        self.metadata: list[dict[str, str]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        volume_pb2_grpc.add_VolumeServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)

    def CreateVolume(self, request, context):  # noqa: N802  # the contract's name
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.slow:
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(self.slow)
        if self.failures:
            context.abort_with_status(rpc_status.to_status(self.failures.pop(0)))
        return volume_pb2.CreateVolumeResponse(volume=volume_pb2.Volume(name=f"{request.pool}/volumes/{request.volume_id}"))

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait(5)


def status(code: grpc.StatusCode, reason: str = "", *, retry: float | None = None, message: str = "no") -> status_pb2.Status:
    """A status as the gateway makes it: with ErrorInfo if there is a reason, with RetryInfo if a repeat is safe."""
    details = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="volgate", metadata={"operation": "operations/1"}))
    if retry is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=int(retry), nanos=int(retry % 1 * 1e9))))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)
