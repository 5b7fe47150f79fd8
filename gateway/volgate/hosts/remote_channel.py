"""Connections between controllers and hosts: mutual TLS by the files of [tls], read again when they change."""

from __future__ import annotations

import contextlib
from pathlib import Path

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from volgate.errors import REASONS, InvalidRequest, Unreachable, VolgateError
from volgate.names import host_certificate_name
from volgate.settings import Tls
from volgate.v1 import agent_pb2, agent_pb2_grpc

__all__ = ["Channels", "answered", "reach"]

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also how long one attempt may take: a link that was cut swallows it
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 4_000),  # also how long sent bytes may stay unacknowledged
    ("grpc.http2.max_pings_without_data", 0),  # a stream of events may say nothing for hours
    ("grpc.use_local_subchannel_pool", 1),
]
_FILES = ("certificate", "key", "client_authority")
_BY_STATUS = {kind.status: kind for kind in reversed(REASONS.values())}  # the parent of each status comes first in the tree


class Channels:
    """Opens channels with the certificate of this process."""

    def __init__(self, tls: Tls) -> None:
        """Nothing is read yet."""
        self._paths = [Path(getattr(tls, name)) for name in _FILES]
        self._stamp: tuple[int, ...] = ()

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever a file does; while one is missing, between its removal and its renewal, it is what it was."""
        with contextlib.suppress(OSError):
            self._stamp = tuple(path.stat().st_mtime_ns for path in self._paths)
        return self._stamp

    def open(self, address: str, host: str = "") -> grpc.Channel:
        """A channel. With `host` its other end must show the certificate of that host, whatever address it has.

        Raises InvalidRequest for files that cannot be read.
        """
        try:
            certificate, key, authority = (path.read_bytes() for path in self._paths)
        except OSError as error:
            raise InvalidRequest(f"configuration: [tls]: {error.filename}: {error.strerror}", field="tls") from error
        named = [("grpc.ssl_target_name_override", host_certificate_name(host))] if host else []
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), [*_OPTIONS, *named])


def reach(channel: grpc.Channel, timeout: float, what: str) -> None:
    """Wait until the channel is connected. Raises Unreachable (HOST_DOWN): for sure nothing was sent."""
    try:
        grpc.channel_ready_future(channel).result(timeout)
    except grpc.FutureTimeoutError:
        raise Unreachable(f"{what} cannot be reached{_why(channel)}", reason="HOST_DOWN", retry_after=2.0) from None


def _why(channel: grpc.Channel) -> str:
    """What the last attempt to connect came to."""
    try:
        agent_pb2_grpc.AgentServiceStub(channel).Call(agent_pb2.CallRequest(), timeout=0.5)  # never admitted
    except grpc.RpcError as error:
        return f": {error.details()}"
    return "; it was, a moment later"


def answered(error: grpc.RpcError) -> VolgateError | None:
    """The error of ours that a status carries; None if the other end said nothing."""
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    info, retry, after = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    found, wrong = False, error_details_pb2.BadRequest()
    details: list[any_pb2.Any] = list(status.details) if status else []
    for detail in details:
        found |= detail.Unpack(info)
        detail.Unpack(wrong)
        if detail.Unpack(retry):
            after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    if not found:
        return None
    kind = _BY_STATUS.get(error.code().name, VolgateError)
    made = kind.__new__(kind)
    field = wrong.field_violations[0].field if wrong.field_violations else ""
    VolgateError.__init__(made, error.details() or "", reason=info.reason, field=field, retry_after=after, metadata=dict(info.metadata))
    return made
