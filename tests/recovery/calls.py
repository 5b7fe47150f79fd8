"""Every mutation as one plain function: a request with its request_id in, what was answered out; retried as the contract says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from volgate.v1 import (
    attachment_pb2,
    attachment_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    pool_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)

POOL = "pools/p"
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
RUNNING = (operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING, operation_pb2.OPERATION_STATE_IN_DOUBT)


def volume_name(name: str) -> str:
    return f"{POOL}/volumes/{name}"


def snapshot_name(volume: str, name: str) -> str:
    return f"{POOL}/volumes/{volume}/snapshots/{name}"


class Refused(Exception):
    """A call's error: `code` is gRPC's, `reason` the stable word, `holders` who blocks."""

    def __init__(self, error: grpc.RpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code, self.message = error.code().name, error.details() or ""
        self.reason, self.field, self.operation = "", "", ""
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
                if detail.Is(kind.DESCRIPTOR):
                    found = kind()
                    detail.Unpack(found)
                    if kind is error_details_pb2.ErrorInfo:
                        self.reason, self.operation = found.reason, found.metadata.get("operation", "")
                    else:
                        self.field = found.field_violations[0].field


@dataclass(frozen=True)
class Call:
    """One mutation: its verb and the fields of its request, request_id included."""

    verb: str
    fields: dict[str, Any] = field(default_factory=dict)

    def message(self) -> Any:
        return VERBS[self.verb][0](**self.fields)

    def __str__(self) -> str:
        return f"{self.verb} {self.fields}"


class Caller:
    """One connection; `patience` bounds a call with its retries, seconds; without `retries` a gateway that is gone is an answer."""

    def __init__(self, address: str, patience: float = 60.0, *, retries: bool = True) -> None:
        self.patience = patience
        self.retries = retries
        self.channel = grpc.insecure_channel(address, options=OPTIONS)
        self.pools = pool_pb2_grpc.PoolServiceStub(self.channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self.channel)
        self.snapshots = snapshot_pb2_grpc.SnapshotServiceStub(self.channel)
        self.attachments = attachment_pb2_grpc.AttachmentServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def once(self, call: Call, timeout: float | None = None) -> Any:
        """Make the call once; the answer, or Refused."""
        service, method = VERBS[call.verb][1:]
        stub = getattr(getattr(self, service), method)
        message: Any = call.message()
        if call.verb == "import":
            message = iter([volume_pb2.ImportVolumeRequest(header=message)])
        try:
            answer = stub(message, timeout=timeout or self.patience)
            return list(answer)[-1] if call.verb == "export" else answer
        except grpc.RpcError as error:
            raise Refused(error) from None

    def __call__(self, call: Call) -> Any:
        """Make the call until it has an outcome: UNAVAILABLE and ABORTED are repeated, a running operation is waited for."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                answer = self.once(call, max(0.1, deadline - time.monotonic()))
                if answer.operation.state not in RUNNING:
                    return answer
            except Refused as error:
                if not self.retries or error.code not in ("UNAVAILABLE", "ABORTED") or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def volume(self, name: str, *, refresh: bool = False) -> Any:
        return _asked(self.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=volume_name(name), refresh=refresh)).volume

    def list_volumes(self) -> dict[str, Any]:
        rows = _pages(self.volumes.ListVolumes, volume_pb2.ListVolumesRequest(pool=POOL, page_size=500), "volumes")
        return {row.name.rpartition("/")[2]: row for row in rows}

    def list_snapshots(self, volume: str) -> dict[str, Any]:
        rows = _pages(self.snapshots.ListSnapshots, snapshot_pb2.ListSnapshotsRequest(parent=volume_name(volume)), "snapshots")
        return {row.name.rpartition("/")[2]: row for row in rows}

    def list_attachments(self) -> list[Any]:
        return list(_pages(self.attachments.ListAttachments, attachment_pb2.ListAttachmentsRequest(page_size=500), "attachments"))

    def list_operations(self, *, unfinished: bool = False) -> list[Any]:
        request = operation_pb2.ListOperationsRequest(page_size=500, unfinished_only=unfinished)
        return list(_pages(self.operations.ListOperations, request, "operations"))

    def content(self, name: str) -> bytes:
        """The bytes of a volume, or of a snapshot by its full name."""
        full = name if "/" in name else volume_name(name)
        data = bytearray()
        try:
            for piece in self.volumes.ExportVolume(
                volume_pb2.ExportVolumeRequest(name=full, format=volume_pb2.VOLUME_FORMAT_RAW), timeout=60
            ):
                data.extend(bytes(max(0, piece.total_bytes - len(data))))
                data[piece.offset : piece.offset + len(piece.chunk)] = piece.chunk
        except grpc.RpcError as error:
            raise Refused(error) from None
        return bytes(data)

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until nothing runs, follow-up work of the gateway included."""
        deadline = time.monotonic() + timeout
        while left := self.list_operations(unfinished=True):
            assert time.monotonic() < deadline, f"still runs: {left}"
            time.sleep(0.02)


def _asked(stub: Callable[..., Any], request: Any) -> Any:
    try:
        return stub(request, timeout=60, wait_for_ready=True)
    except grpc.RpcError as error:
        raise Refused(error) from None


def _pages(stub: Callable[..., Any], request: Any, rows: str) -> Iterable[Any]:
    while True:
        answer = _asked(stub, request)
        yield from getattr(answer, rows)
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


VERBS: dict[str, tuple[Any, str, str]] = {
    "create": (volume_pb2.CreateVolumeRequest, "volumes", "CreateVolume"),
    "delete": (volume_pb2.DeleteVolumeRequest, "volumes", "DeleteVolume"),
    "expand": (volume_pb2.ExpandVolumeRequest, "volumes", "ExpandVolume"),
    "update": (volume_pb2.UpdateVolumeRequest, "volumes", "UpdateVolume"),
    "revert": (volume_pb2.RevertVolumeRequest, "volumes", "RevertVolume"),
    "adopt": (volume_pb2.AdoptVolumeRequest, "volumes", "AdoptVolume"),
    "import": (volume_pb2.ImportHeader, "volumes", "ImportVolume"),
    "export": (volume_pb2.ExportVolumeRequest, "volumes", "ExportVolume"),
    "snapshot": (snapshot_pb2.CreateSnapshotRequest, "snapshots", "CreateSnapshot"),
    "unsnapshot": (snapshot_pb2.DeleteSnapshotRequest, "snapshots", "DeleteSnapshot"),
    "attach": (attachment_pb2.AttachVolumeRequest, "attachments", "AttachVolume"),
    "detach": (attachment_pb2.DetachVolumeRequest, "attachments", "DetachVolume"),
}
