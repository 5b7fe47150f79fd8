"""The contract as it is on the wire: bare stubs, and a refusal with all its details. No client library in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_status import rpc_status

from volgate.v1 import attachment_pb2_grpc, host_pb2_grpc, operation_pb2_grpc, pool_pb2_grpc, snapshot_pb2_grpc, volume_pb2_grpc

__all__ = ["Refusal", "Wire", "refusal", "refused"]


class Wire:
    """One channel with the stubs of every service."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        self.channel = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
        self.pools = pool_pb2_grpc.PoolServiceStub(self.channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self.channel)
        self.snapshots = snapshot_pb2_grpc.SnapshotServiceStub(self.channel)
        self.attachments = attachment_pb2_grpc.AttachmentServiceStub(self.channel)
        self.hosts = host_pb2_grpc.HostServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


@dataclass
class Refusal:
    """A status with its details."""

    code: str
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    holders: list[tuple[str, str, str]] = field(default_factory=list)
    retry_after: float | None = None
    trailers: dict[str, Any] = field(default_factory=dict)


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> Refusal:
    """Make a call that must fail and return how; an answer that is a stream is read to its end."""
    options.setdefault("timeout", 30)
    try:
        answer = call(*arguments, **options)
        if hasattr(answer, "__next__"):
            answer = list(answer)
    except grpc.RpcError as error:
        return refusal(error)
    raise AssertionError(f"the call was answered: {str(answer)[:300]}")


def refusal(error: grpc.RpcError) -> Refusal:
    """Read a status."""
    trailers = dict(error.trailing_metadata() or ())
    found = Refusal(error.code().name, error.details() or "", trailers=trailers)
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        _read(found, detail)
    return found


def _read(found: Refusal, detail: Any) -> None:
    if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
        info = error_details_pb2.ErrorInfo.FromString(detail.value)
        found.reason, found.domain, found.metadata = info.reason, info.domain, dict(info.metadata)
    elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
        delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
        found.retry_after = delay.seconds + delay.nanos / 1e9
    elif detail.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR):
        failure = error_details_pb2.PreconditionFailure.FromString(detail.value)
        found.holders = [(v.type, v.subject, v.description) for v in failure.violations]
    elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
        bad = error_details_pb2.BadRequest.FromString(detail.value)
        found.fields = [v.field for v in bad.field_violations]
