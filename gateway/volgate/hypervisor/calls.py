"""Blocking libvirt work under deadlines: one change of a domain at a time, a few looks beside it, domains apart from each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeAlias, TypeVar

import libvirt

from volgate.errors import InDoubt, Unreachable, VolgateError
from volgate.hypervisor.link import Link
from volgate.lanes import Lane
from volgate.tracing import span

__all__ = ["Calls", "Libvirt"]

T = TypeVar("T")
Libvirt: TypeAlias = libvirt.virConnect
Work = Callable[[Libvirt], T]
_DEPTH = 128
_MANY = 1024  # lanes kept for domains that nobody asks for now


class Calls:
    """Runs work on a :class:`Link`. A native call cannot be interrupted: when its caller gives up, it ends by itself in its lane.

    Every call raises Busy (too many wait), Unreachable (libvirt is away, or the work did not begin in time), and at its
    deadline InDoubt for a change, Unreachable for a look. Deadlines are monotonic seconds.
    """

    def __init__(self, link: Link) -> None:
        """Share a link."""
        self._link = link
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._waiting: set[Future[Any]] = set()
        self._closed = False

    def ask(self, name: str, deadline: float, work: Work[T]) -> T:
        """Ask about the host or find a domain: never waits for a guest or a QEMU."""
        return self._run(("host", ""), 8, name, deadline, work, Unreachable)

    def probe(self, name: str, deadline: float, work: Work[T]) -> T:
        """Ask what may take libvirt seconds, once at a time; nothing else waits behind it."""
        return self._run(("probe", ""), 1, name, deadline, work, Unreachable)

    def look(self, domain: str, name: str, deadline: float, work: Work[T]) -> T:
        """Read a domain (uuid)."""
        return self._run(("look", domain), 2, name, deadline, work, Unreachable)

    def change(self, domain: str, name: str, deadline: float, work: Work[T]) -> T:
        """Change a domain (uuid), beside no other change of it: what `work` looks at first stays true until it acts."""
        return self._run(("change", domain), 1, name, deadline, work, InDoubt)

    def _run(self, key: tuple[str, str], width: int, name: str, deadline: float, work: Work[T], unknown: type[VolgateError]) -> T:
        with span(f"libvirt {name}", domain=key[1]):
            future = self._submit(key, width, deadline, work)
            try:
                return future.result(max(0.0, deadline - time.monotonic()))
            except CancelledError:
                raise Unreachable(f"{name}: the gateway stops; nothing was done", reason="STOPPING") from None
            except FutureTimeoutError:
                if future.cancel():
                    raise Unreachable(
                        f"{name}: other work on the domain did not end in time; nothing was done", reason="DOMAIN_BUSY"
                    ) from None
                if future.done():
                    return future.result()
                raise unknown(f"{name}: no answer in time; libvirt, or the domain's QEMU, is busy or hangs", reason="DOMAIN_BUSY") from None

    def _submit(self, key: tuple[str, str], width: int, deadline: float, work: Work[T]) -> Future[T]:
        session = self._link.acquire(deadline)

        def on_loan() -> T:
            with session.lent() as connection:
                return work(connection)

        try:
            with self._lock:
                if self._closed:
                    raise Unreachable("the gateway stops; nothing was done", reason="STOPPING")
                lane = self._lanes.get(key) or self._add(key, width)
                future = lane.submit(on_loan)
                self._waiting.add(future)
        except VolgateError:
            self._link.release(session)
            raise

        def ended(done: Future[T]) -> None:
            self._link.release(session)
            with self._lock:
                self._waiting.discard(done)

        future.add_done_callback(ended)
        return future

    def _add(self, key: tuple[str, str], width: int) -> Lane:
        if len(self._lanes) >= _MANY:
            self._lanes = {k: lane for k, lane in self._lanes.items() if lane.queued or lane.running}
        lane = self._lanes[key] = Lane(f"{key[0]}-{key[1][:8]}", width, _DEPTH)
        return lane

    def close(self) -> None:
        """Refuse new calls and answer those that have not begun; calls that run end by themselves."""
        with self._lock:
            self._closed = True
            waiting = tuple(self._waiting)
            lanes = tuple(self._lanes.values())
        for future in waiting:
            future.cancel()
        for lane in lanes:
            lane.close()
