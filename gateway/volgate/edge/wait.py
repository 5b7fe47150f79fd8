"""Waiting for an operation on behalf of a call: until it ends, until the guest is too slow, or until the caller's deadline is near."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate.edge.identity import CALLER
from volgate.edge.types import Context
from volgate.errors import DeadlineExceeded
from volgate.lanes import Lane
from volgate.operations.gateway import Gateway
from volgate.operations.requests import Caller, DetachVolume, Plan, Request
from volgate.operations.scope import Scope
from volgate.operations.ticket import Ticket
from volgate.store.records import OperationRecord

__all__ = ["Calls", "caller", "scope"]

P = ParamSpec("P")
T = TypeVar("T")
_SPOOL = "spool"
_PLACES = ("pools", "hosts", "registrations", "paths", _SPOOL)
_LONG_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_MARGIN = 0.25  # so that the rich answer arrives also on a busy machine


class Calls:
    """What the servicers share: reads in bounded lanes of threads, mutations as tickets.

    What only reads the database has a lane of its own; what asks a storage or a host has one for each of them, so that one
    that hangs keeps nobody else waiting.
    """

    def __init__(self, gateway: Gateway) -> None:
        """Take the gateway."""
        self.gateway = gateway
        self._index = Lane("reads", 16, 4096)
        self._native: dict[str, Lane] = {}
        for place in _PLACES:
            self._native[place] = _lane(place)

    @property
    def lanes(self) -> list[Lane]:
        """Every lane; those of pools and hosts that are gone are forgotten."""
        for place in [place for place in self._native if "/" in place and not self._serves(place)]:
            self._native.pop(place).close()
        for pool in self.gateway.world.pools:
            self._lane(f"pools/{pool.name}")
        for name in self.gateway.world.hosts.local:  # of others when somebody asks them: there may be thousands
            self._lane(f"hosts/{name}")
        return [self._index, *self._native.values()]

    def _serves(self, place: str) -> bool:
        kind, _, name = place.partition("/")
        return name in (self.gateway.world.pools if kind == "pools" else self.gateway.world.hosts)

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking read of the database off the event loop. Raises Busy and what the read raises."""
        return await asyncio.wrap_future(self._index.submit(function, *args, **kwargs))

    async def ask(self, place: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, for what asks a pool (`pools/a`) or a host (`hosts/a`), or all of them (`pools`, `hosts`)."""
        return await asyncio.wrap_future(self._lane(place).submit(function, *args, **kwargs))

    async def plan(self, request: Request) -> Plan:
        """What a mutation would do."""
        return await self.ask("/".join(request.target.split("/")[:2]), self.gateway.plan, request, caller())

    async def acquire(self, place: str, release: Callable[[T], object], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `ask`, for what must be let go of: `release` gets it if the caller went away before it was there."""
        future = self._lane(place).submit(function, *args, **kwargs)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else release(done.result()))
            raise

    async def spool(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, for what writes to the spool."""
        return await self.ask(_SPOOL, function, *args, **kwargs)

    def _lane(self, place: str) -> Lane:
        found = self._native.get(place)
        if found is None and place.startswith(("pools/", "hosts/")) and self._serves(place):
            found = self._native.setdefault(place, _lane(place))  # pools and hosts come while the gateway runs
        return found or self._index  # what is not known is refused without asking anybody

    async def submit(self, request: Request, request_id: str) -> Ticket:
        """Begin or join a mutation."""
        if isinstance(request, DetachVolume):  # what it is about is read from the database first
            return await self.read(self.gateway.submit, request, caller(request_id))
        return self.gateway.submit(request, caller(request_id))  # waits for nothing, and a hand-over costs more

    async def run(self, request: Request, request_id: str, context: Context) -> tuple[Ticket, bool]:
        """Submit a mutation and wait for its end; False if it still runs and the answer is the running operation.

        Raises the operation's error, or DeadlineExceeded naming it shortly before the caller's deadline: it goes on.
        """
        ticket = await self.submit(request, request_id)
        return ticket, await self.wait(ticket, request, context)

    async def follow(self, ticket: Ticket, request: Request, context: Context) -> AsyncIterator[OperationRecord]:
        """What becomes of a long mutation, several times a second and for as long as `wait` waits; raises as `run`."""
        end = asyncio.get_running_loop().time() + _LONG_SECONDS
        while not await self.wait(ticket, request, context, patience=_LOOK_SECONDS):
            record = ticket.record()
            if record.state.final:
                continue  # its answer comes at once
            yield record
            left = context.time_remaining()
            if asyncio.get_running_loop().time() > end or (left is not None and left < 2 * _LOOK_SECONDS):
                return
        yield ticket.record()

    async def wait(self, ticket: Ticket, request: Request, context: Context, *, patience: float = _LONG_SECONDS) -> bool:
        """Wait for the end of a mutation, of a long one at most `patience` seconds; False and raises as `run`."""
        left = context.time_remaining()
        most = None if left is None else max(0.0, left - min(_MARGIN, left * 0.1))
        if ticket.long:
            most = patience if most is None else min(most, patience)
        waiting: list[asyncio.Future[object]] = [_watch(ticket.future), _watch(ticket.pending)]
        await asyncio.wait(waiting, timeout=most, return_when=asyncio.FIRST_COMPLETED)
        if ticket.future.done():
            ticket.future.result()
            return True
        if ticket.long or ticket.pending.done():
            return False
        raise DeadlineExceeded(
            f"{request.method} of {request.target} still runs; repeat the call to learn its outcome",
            operation=f"operations/{ticket.operation}",
        )

    def close(self) -> None:
        """Stop the threads."""
        for lane in self.lanes:
            lane.close()


def _watch(future: Future[T]) -> asyncio.Future[object]:
    """An asyncio future that resolves with the other one, and whose cancellation does not reach it."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[object] = loop.create_future()

    def resolve() -> None:
        if not seen.done():
            seen.set_result(None)

    def done(_: Future[T]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve)

    future.add_done_callback(done)
    return seen


def caller(request_id: str = "") -> Caller:
    """Who makes the call that runs now. Raises LookupError outside of a call."""
    principal = CALLER.get()
    return Caller(request_id=request_id, principal=str(principal), trace=_traceparent(), scope=principal.scope)


def scope() -> Scope:
    """What the call that runs now may see. Raises LookupError outside of a call."""
    return CALLER.get().scope


def _traceparent() -> str:
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def _lane(place: str) -> Lane:
    return Lane(f"reads {place}", 16, 256)
