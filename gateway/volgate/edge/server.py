"""The server: a unix socket and TCP with mutual TLS, the services, health, reflection, a graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import grp
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from volgate.edge.attachments import AttachmentServicer
from volgate.edge.call import CallInterceptor
from volgate.edge.gate import LocalGate
from volgate.edge.hosts import HostServicer
from volgate.edge.operations import OperationServicer
from volgate.edge.pools import PoolServicer
from volgate.edge.snapshots import SnapshotServicer
from volgate.edge.volumes import VolumeServicer
from volgate.edge.wait import Calls
from volgate.errors import Precondition
from volgate.lanes import Lane
from volgate.operations.gateway import Gateway
from volgate.v1 import (
    attachment_pb2,
    attachment_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)

if TYPE_CHECKING:
    # imported where it is asked for: what reads certificates is not small
    from volgate.edge.network import Network

__all__ = ["EdgeServer"]

_log = structlog.get_logger()
_QUIET_SECONDS = 2.0
_TELL_SECONDS = 0.1  # for those who watch the health to read that it is NOT_SERVING
_FILES = (pool_pb2, volume_pb2, snapshot_pb2, attachment_pb2, host_pb2, operation_pb2)


class EdgeServer:
    """Serves one gateway on one unix socket and, by a gRPC server with bounds of its own, to the network."""

    def __init__(
        self,
        gateway: Gateway,
        path: Path,
        *,
        socket_mode: int = 0o660,
        socket_group: str = "",
        reader_timeout: float = 120.0,
        max_message: int = 4 << 20,
        network: Network | None = None,
    ) -> None:
        """`socket_mode` and `socket_group` say who may connect; `max_message` is in bytes; `reader_timeout`: see `CallInterceptor`."""
        self._path = path
        self._mode = socket_mode
        self._group = socket_group
        self._calls = Calls(gateway)
        self._health = health.aio.HealthServicer()
        options = [("grpc.max_receive_message_length", max_message), ("grpc.max_send_message_length", 16 << 20), ("grpc.so_reuseport", 0)]
        self._network = network
        self._interceptors = [CallInterceptor(LocalGate(), reader_timeout)]
        self._local = aio.server(interceptors=self._interceptors, options=options)
        self._servers = [self._local]
        if network:
            self._interceptors.append(CallInterceptor(network.gate(), reader_timeout))
            self._servers.append(aio.server(interceptors=self._interceptors[1:], options=[*options, *network.options()]))
        self._register()

    @property
    def lanes(self) -> list[Lane]:
        """Where reads run."""
        return self._calls.lanes

    def _register(self) -> None:
        calls = self._calls
        volumes = VolumeServicer(calls)  # one for all: it keeps answers
        names = [*_services(), health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        for server in self._servers:
            pool_pb2_grpc.add_PoolServiceServicer_to_server(PoolServicer(calls), server)
            volume_pb2_grpc.add_VolumeServiceServicer_to_server(volumes, server)
            snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server(SnapshotServicer(calls), server)
            attachment_pb2_grpc.add_AttachmentServiceServicer_to_server(AttachmentServicer(calls), server)
            host_pb2_grpc.add_HostServiceServicer_to_server(HostServicer(calls), server)
            operation_pb2_grpc.add_OperationServiceServicer_to_server(OperationServicer(calls), server)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            reflection.enable_server_reflection(names, server)

    async def start(self) -> None:
        """Listen. Raises Precondition if somebody else listens there, or there is no such address."""
        bound = self._network.listen(self._servers[1]) if self._network else []  # first: what fails must leave no socket behind
        _clear_stale(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # born writable, and so open, to its owner alone: the process's umask sees to it. A umask for this moment would hit other threads
        self._local.add_insecure_port(f"unix:{self._path}")
        await asyncio.gather(*(server.start() for server in self._servers))
        if self._group:
            os.chown(self._path, -1, grp.getgrnam(self._group).gr_gid)
        self._path.chmod(self._mode)
        for name in ("", *_services()):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        gc.collect()
        gc.freeze()  # what is there now stays: to look through all of it again would hold up some call for 60 ms
        _log.info("listening", socket=str(self._path), listen=bound)

    async def stop(self, grace: float) -> None:
        """Tell health, refuse new calls, end what only watches, let the others end within `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(_TELL_SECONDS)
        for interceptor in self._interceptors:
            interceptor.end_watches()
        await self._quiet(min(grace, _QUIET_SECONDS))
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        self._calls.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _quiet(self, longest: float) -> None:
        """Wait until no call has come in for a moment: one on its way gets an answer of ours, not a closing server's CANCELLED."""
        for _ in range(max(1, int(longest / _TELL_SECONDS))):
            before = self._begun()
            await asyncio.sleep(_TELL_SECONDS)
            if self._begun() == before:
                return

    def _begun(self) -> int:
        return sum(interceptor.begun for interceptor in self._interceptors)


def _services() -> list[str]:
    return [service.full_name for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()]


def _clear_stale(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise Precondition(f"{path} exists and is no socket; remove it or configure another [server] socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
        else:
            raise Precondition(f"another server listens on {path}; stop it first")
