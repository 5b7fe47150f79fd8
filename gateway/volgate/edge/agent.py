"""AgentService: what a host does for its controllers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from volgate.edge.types import Context
from volgate.errors import InvalidRequest, VolgateError
from volgate.hosts.agent import Agent
from volgate.hosts.interface import HostEvent
from volgate.hosts.wire import METHODS, pack_event, pack_failure
from volgate.v1 import agent_pb2, agent_pb2_grpc

__all__ = ["AgentServicer"]

_KEPT = 4096  # events that a controller has not read; one that lags further listens anew, and looks for itself
_LOOK_SECONDS = 1.0


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """Serves one host."""

    def __init__(self, agent: Agent) -> None:
        """Take the host."""
        self._agent = agent

    def _admit(self, speaker: agent_pb2.Speaker) -> None:
        self._agent.membership.admit(speaker.protocol, speaker.instance, speaker.session)

    async def Call(self, request: agent_pb2.CallRequest, _: Context) -> agent_pb2.CallResponse:  # noqa: N802  # the contract's name
        """Make one call; what the host raises is an answer and no status."""
        self._admit(request.speaker)
        if request.method not in METHODS:
            raise InvalidRequest(f"method: a host has no call {request.method[:80]!r}", field="method")
        agent, session = self._agent, request.speaker.session
        try:
            work = agent.lane.submit(agent.call, session, request.method, dict(request.arguments))
            return agent_pb2.CallResponse(value=await asyncio.wrap_future(work))
        except VolgateError as error:
            return agent_pb2.CallResponse(failure=pack_failure(error))

    async def Listen(  # noqa: N802  # the contract's name
        self, request: agent_pb2.ListenRequest, _: Context
    ) -> AsyncIterator[agent_pb2.ListenResponse]:
        """Tell events until the session ends."""
        self._admit(request.speaker)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[HostEvent] = asyncio.Queue(_KEPT)

        def tell(event: HostEvent) -> None:
            if not events.full():
                events.put_nowait(event)

        def heard(event: HostEvent) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, event)

        end = self._agent.listen(heard)
        try:
            yield agent_pb2.ListenResponse()
            while not events.full():
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        event = await events.get()
                except TimeoutError:
                    self._admit(request.speaker)
                    continue
                yield agent_pb2.ListenResponse(event=pack_event(event))
        finally:
            end()
