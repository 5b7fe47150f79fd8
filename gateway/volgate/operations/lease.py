"""A controller's lease: until when its operations may work on storages and guests, for others take them over after that.

It is renewed by the heartbeat in the shared database. When it runs out with work under way, the spawner's helper kills every child
and then the gateway: that also hits one that is stopped. Without work under way nothing has to end: it is given back in time, and
nothing begins before the next heartbeat.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from volgate.errors import Unreachable
from volgate.forker import clock

__all__ = ["Lease"]

_PART = 2 / 3  # of the lapse after which others take over: the rest is for the kill, and for clocks that differ
_MARGIN = 1 / 12


class Lease:
    """Counts what is under way. Without `seconds` it never ends: nobody else writes to the database."""

    def __init__(self, seconds: float = 0.0, tell: Callable[[float], None] = lambda _until: None) -> None:
        """`seconds` without a heartbeat, and others take over; `tell` says until when (`forker.clock`) work may go on, 0: there is none."""
        self.seconds = seconds
        self._tell = tell
        self._lock = threading.Lock()
        self._working = 0
        self._until = 0.0

    def renew(self, since: float) -> None:
        """Go on: a heartbeat that was begun at `since` (`forker.clock`) is in the database. One that took too long says nothing."""
        with self._lock:
            if (until := since + self.seconds * _PART) > clock():
                self._until = until
                self._tell(until)

    def give_back(self) -> None:
        """Called several times in a margin: end the lease in time if nothing is under way."""
        with self._lock:
            if self._until and not self._working and clock() > self._until - self.seconds * _MARGIN:
                self._until = 0.0
                self._tell(0.0)

    def require(self) -> None:
        """Raise Unreachable (DATABASE_DOWN) if the lease has ended."""
        if self.seconds and clock() >= self._until:
            told = "this controller has lost its link to the database, and others may be at work in its place; repeat the call"
            raise Unreachable(told, reason="DATABASE_DOWN", retry_after=2.0)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Work on storages and guests. Raises Unreachable (DATABASE_DOWN)."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """In the middle of `working`: wait for the database, which may be away for long. Raises Unreachable (DATABASE_DOWN)."""
        self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._working += 1
        self.require()

    def _enter(self) -> None:
        with self._lock:
            self.require()
            self._working += 1

    def _leave(self) -> None:
        with self._lock:
            self._working -= 1
