"""A host's side of the calls of its controllers: admitted, decoded, recorded, done. Blocking, for many threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from volgate.errors import InvalidRequest, Unreachable
from volgate.hosts.interface import Host, HostEvent
from volgate.hosts.journal import JournalledHost
from volgate.hosts.membership import Membership
from volgate.hosts.wire import METHODS
from volgate.lanes import Lane

__all__ = ["Agent"]

_WIDTH, _DEPTH = 64, 1024  # calls that run, and that wait; libvirt has lanes of its own behind these


class Agent:
    """One host for its controllers."""

    def __init__(self, host: Host, journal: JournalledHost, membership: Membership) -> None:
        """`start` does the rest."""
        self.membership = membership
        self.lane = Lane("host calls", _WIDTH, _DEPTH)
        self._host = host
        self._journal = journal
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._listeners: list[Callable[[HostEvent], None]] = []
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="host-keeper", daemon=True)

    def start(self) -> None:
        """Listen to libvirt, and mend what an earlier process left; calls are refused until that is done."""
        self._host.subscribe(self._tell)
        self._keeper.start()

    def call(self, session: str, name: str, arguments: Mapping[str, bytes]) -> bytes:
        """Make one call of a session that was admitted.

        Raises InvalidRequest (no such method or arguments), Unreachable (HOST_DOWN: a call of an earlier session has not ended, so
        nobody could believe what this one sees), and what the host raises.
        """
        with self._lock:
            if any(of != session for of in self._running):
                raise Unreachable("calls of the host's last registration have not ended; repeat the call", reason="HOST_DOWN")
            self._running[session] += 1
        try:
            return self._made(name, arguments)
        finally:
            with self._lock:
                self._running[session] -= 1
                if not self._running[session]:
                    del self._running[session]

    def _made(self, name: str, arguments: Mapping[str, bytes]) -> bytes:
        method = METHODS.get(name)
        if method is None:
            raise InvalidRequest(f"method: a host has no call {name[:80]!r}", field="method")
        try:
            values = method.unpack(arguments)
        except ValueError as error:
            raise InvalidRequest(f"arguments: {error}", field="arguments") from error
        function: Callable[..., Any] = getattr(self._journal, name, None) or getattr(self._host, name)
        return method.pack_answer(function(**values))

    def listen(self, listener: Callable[[HostEvent], None]) -> Callable[[], None]:
        """Call `listener` for each event, from any thread; return what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def close(self) -> None:
        """Take no more calls."""
        self._stop.set()
        self.lane.close()

    def _tell(self, event: HostEvent) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(event)

    def _keep(self) -> None:
        while not self._journal.recover():
            if self._stop.wait(1.0):
                return
        self.membership.repaired()
        while True:
            self._journal.prune()
            if self._stop.wait(3600.0):
                return
