"""The server of a host: mutual TLS, AgentService and health, nothing else."""

from __future__ import annotations

import asyncio

import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from volgate.edge.agent import AgentServicer
from volgate.edge.call import CallInterceptor
from volgate.edge.network import Network
from volgate.hosts.agent import Agent
from volgate.v1 import agent_pb2_grpc

__all__ = ["AgentServer"]

_log = structlog.get_logger()
_TELL_SECONDS = 0.1
_LONGEST = 16 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", _LONGEST),
    ("grpc.max_send_message_length", _LONGEST),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.max_ping_strikes", 0),  # controllers look after streams that say nothing
]


class AgentServer:
    """Serves one host to its controllers."""

    def __init__(self, agent: Agent, network: Network, reader_timeout: float) -> None:
        """`reader_timeout`: see `CallInterceptor`."""
        self._network = network
        self._health = health.aio.HealthServicer()
        self._interceptor = CallInterceptor(network.gate(), reader_timeout)
        self._server = aio.server(interceptors=[self._interceptor], options=[*_OPTIONS, *network.options()])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentServicer(agent), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> list[str]:
        """Listen; return the addresses with the ports that they got. Raises Precondition."""
        bound = self._network.listen(self._server)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        _log.info("listening", listen=bound)
        return bound

    async def stop(self, grace: float) -> None:
        """Refuse new calls, end the streams, let calls end within `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(_TELL_SECONDS)
        self._interceptor.end_watches()
        await self._server.stop(grace)
