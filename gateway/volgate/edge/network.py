"""The TCP listeners: addresses, certificates, and the bounds that keep clients who are slow, dead or hostile from others."""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from pathlib import Path

import structlog
from grpc import aio

from volgate.edge.certificates import Certificates
from volgate.edge.clients import TlsGate
from volgate.errors import InvalidRequest, Precondition
from volgate.settings import Settings

__all__ = ["Network"]

_log = structlog.get_logger()
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PORT_MOST = 65535
_OTHERS = 512  # descriptors that are not connections
_ALIVE_MS = {"grpc.keepalive_time_ms": 60_000, "grpc.keepalive_timeout_ms": 20_000}  # a peer that is gone is noticed
_IDLE_MS = 300_000  # a connection without calls gives up its place; its client connects again with the next call
_AGE_MS = 3_600_000  # then a client connects again, by the certificates and authorities of that day; calls that run go on


@dataclass(frozen=True, slots=True)
class Network:
    """What a gateway serves by TCP. `client_calls` and `client_streams` bound each client, `connections` each address."""

    addresses: tuple[str, ...]
    certificates: Certificates
    client_calls: int
    client_streams: int
    connections: int
    handshake_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> Network:
        """What the settings ask for. Raises InvalidRequest naming the key, also for files that are of no use."""
        for address in settings.server.listen:
            _require_address(address)
        tls, limits = settings.tls, settings.limits
        for name in ("certificate", "key", "client_authority"):
            if not getattr(tls, name):
                told = f"configuration: tls.{name}: server.listen serves TCP with mutual TLS alone; name the file, or empty server.listen"
                raise InvalidRequest(told, field=f"tls.{name}")
        for name in ("client_calls", "client_streams", "connections", "handshake_seconds"):
            if getattr(limits, name) <= 0:
                raise InvalidRequest(f"configuration: limits.{name}: must be more than 0", field=f"limits.{name}")
        certificates = Certificates(Path(tls.certificate), Path(tls.key), Path(tls.client_authority))
        numbers = (limits.client_calls, limits.client_streams, limits.connections, limits.handshake_seconds)
        return cls(settings.server.listen, certificates, *numbers)

    def gate(self) -> TlsGate:
        """What lets its clients in."""
        return TlsGate(self.client_calls, self.client_streams)

    def options(self) -> list[tuple[str, int]]:
        """Of gRPC: what bounds connections that have not said who they are, and those that say nothing any more."""
        return [
            ("grpc.server_handshake_timeout_ms", int(self.handshake_seconds * 1000)),
            ("grpc.max_allowed_incoming_connections", self._connections()),
            ("grpc.max_concurrent_streams", self.client_calls + self.client_streams),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            ("grpc.max_connection_age_ms", _AGE_MS),
            *_ALIVE_MS.items(),
        ]

    def listen(self, server: aio.Server) -> list[str]:
        """Bind every address; return them with the ports that they got. Raises Precondition."""
        bound = []
        for address in self.addresses:
            host, _, _ = address.rpartition(":")
            try:
                bound.append(f"{host}:{server.add_secure_port(address, self.certificates.credentials())}")
            except RuntimeError as error:
                told = f"cannot listen on {address} of [server] listen: another program has it, or this machine has no such address"
                raise Precondition(told) from error
        return bound

    def _connections(self) -> int:
        """As many as are asked for, or as the process has descriptors for."""
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHERS
        most = max(1, free // len(self.addresses))
        if self.connections > most:
            _log.warning("fewer connections than limits.connections: raise LimitNOFILE", connections=most, descriptors=free + _OTHERS)
        return min(self.connections, most)


def _require_address(address: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if not found or int(found[2]) > _PORT_MOST:
        told = f"configuration: server.listen: {address!r} is not HOST:PORT, such as 10.0.0.5:7443 or [::]:7443"
        raise InvalidRequest(told, field="server.listen")
