"""First come, first served, per object: in memory where one process has the database, by rows of it where controllers share it."""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import structlog

from volgate.errors import Busy, VolgateError
from volgate.operations.queues import Queues
from volgate.store import turns
from volgate.store.database import Commit, Database

__all__ = ["LocalOrder", "Order", "SharedOrder"]

Ready = Callable[[], None]
_log = structlog.get_logger()


class Order(ABC):
    """Members wait at all objects that they lock; one that is first at each of them is told so once."""

    alone = True
    """Whether no other controller is there to be told of what ends here; a wrong word costs another one a look."""

    @abstractmethod
    def enter(self, member: str, keys: tuple[str, ...], ready: Ready) -> None:
        """Take a member in; in memory its place is taken now."""

    @abstractmethod
    def begin(self, commit: Commit, member: str, keys: tuple[str, ...]) -> None:
        """Take its place in the commit that records it; may run twice."""

    @abstractmethod
    def begun(self, member: str) -> None:
        """That commit is done."""

    @abstractmethod
    def end(self, commit: Commit, member: str) -> None:
        """Give its place up in the commit that ends it; may run twice."""

    @abstractmethod
    def leave(self, member: str) -> None:
        """Forget it; those that are first now are told."""

    def look(self, member: str) -> None:  # noqa: B027  # in memory nobody's turn comes from outside
        """Tell a member if it is first now."""

    def poll(self) -> None:  # noqa: B027  # as above
        """Look for what was missed. Raises VolgateError."""

    @abstractmethod
    def hold(self, target: str, timeout: float) -> Ready:
        """Lock one object for a long read; return what lets go. Raises Busy when others keep it for `timeout` seconds."""

    @abstractmethod
    def hold_if_free(self, target: str) -> Ready | None:
        """Lock one object if no operation on it runs or waits; return what lets go, or None."""

    @abstractmethod
    def is_free(self, target: str) -> bool:
        """Whether no operation on an object runs or waits."""


class LocalOrder(Order):
    """Queues of this process."""

    def __init__(self) -> None:
        """Start with none."""
        self._queues = Queues()

    def enter(self, member: str, keys: tuple[str, ...], ready: Ready) -> None:
        """Take a place in each queue."""
        self._queues.enter(member, keys, ready)

    def begin(self, commit: Commit, member: str, keys: tuple[str, ...]) -> None:
        """It has its place."""

    def begun(self, member: str) -> None:
        """It has its place."""

    def end(self, commit: Commit, member: str) -> None:
        """Its place is given up in memory, afterwards."""

    def leave(self, member: str) -> None:
        """Give the places up."""
        self._queues.leave(member)

    def hold(self, target: str, timeout: float) -> Ready:
        """Queue for one object."""
        member, turn = uuid.uuid4().hex, threading.Event()
        self._queues.enter(member, (target,), turn.set)
        if not turn.wait(timeout):
            self._queues.leave(member)
            raise _busy(target, timeout)
        return lambda: self._queues.leave(member)

    def hold_if_free(self, target: str) -> Ready | None:
        """Queue for one object, and leave at once if that means to wait."""
        member, mine = uuid.uuid4().hex, threading.Event()
        self._queues.enter(member, (target,), mine.set)
        if mine.is_set():
            return lambda: self._queues.leave(member)
        self._queues.leave(member)
        return None

    def is_free(self, target: str) -> bool:
        """Look by taking a place."""
        release = self.hold_if_free(target)
        if release is not None:
            release()
        return release is not None


class SharedOrder(Order):
    """Turns in the database. Whoever ends wakes those that come next; `poll` is the net below lost wakings and places."""

    def __init__(self, database: Database) -> None:
        """Start with none."""
        self._database = database
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._waiting: dict[str, Ready] = {}
        self._first: set[str] = set()
        self._next: dict[str, list[str]] = {}
        self._strange: set[str] = set()

    def enter(self, member: str, keys: tuple[str, ...], ready: Ready) -> None:  # noqa: ARG002  # its place is taken by `begin`
        """Know it, so that its place is not taken for one that was lost."""
        with self._lock:
            self._known.add(member)
            self._waiting[member] = ready

    def begin(self, commit: Commit, member: str, keys: tuple[str, ...]) -> None:
        """Take a place, and keep whether it is the first."""
        first = turns.enter(commit, member, keys, self._database.owner)
        with self._lock:
            (self._first.add if first else self._first.discard)(member)

    def begun(self, member: str) -> None:
        """Call one that found nobody there; another one is called by whoever is before it."""
        with self._lock:
            first = member in self._first
            self._first.discard(member)
        if first:
            self._call(member)

    def end(self, commit: Commit, member: str) -> None:
        """Give the place up and tell the controllers of those that come next."""
        ours = []
        for owner, other in turns.leave(commit, member):
            if owner == self._database.owner:
                ours.append(other)
            else:
                turns.tell(commit, "turn", owner, other)
        if not self.alone:
            turns.tell(commit, "end", member)
        with self._lock:
            self._next[member] = ours

    def leave(self, member: str) -> None:
        """Forget it and look at our own that come next."""
        with self._lock:
            self._known.discard(member)
            self._waiting.pop(member, None)
            self._first.discard(member)
            following = self._next.pop(member, [])
        for other in following:
            self.look(other)

    def look(self, member: str) -> None:
        """Call a member if it is first now; what the database does not tell now, `poll` finds later."""
        with self._lock:
            waits = member in self._waiting
        if not waits:
            return
        try:
            with self._database.read() as connection:
                first = turns.first(connection, member)
        except VolgateError as error:
            _log.info("whose turn it is, is not known now", error=error.message)
        else:
            if first:
                self._call(member)

    def poll(self) -> None:
        """Call all that are first now, and give up places that nobody here knows of (twice: one may be on its way). Raises VolgateError."""
        with self._lock:
            waiting = set(self._waiting)
        with self._database.read() as connection:
            placed = turns.members(connection, self._database.owner)
            ready = turns.ready(connection, self._database.owner) if waiting else set()
        for member in ready & waiting:
            self._call(member)
        with self._lock:
            strange = placed - self._known
            lost, self._strange = strange & self._strange, strange
        if lost:
            self._database.write(partial(_drop, lost=sorted(lost)))

    def hold(self, target: str, timeout: float) -> Ready:
        """Take a turn in a commit of its own and wait for it."""
        member, turn = uuid.uuid4().hex, threading.Event()
        self.enter(member, (target,), turn.set)
        try:
            self._database.write(lambda commit: self.begin(commit, member, (target,)))
            self.begun(member)
            if not turn.wait(timeout):
                raise _busy(target, timeout)
        except VolgateError:
            self._let_go(member)
            raise
        return lambda: self._let_go(member)

    def hold_if_free(self, target: str) -> Ready | None:
        """Take a turn where nobody has one. Raises Unreachable (DATABASE_DOWN)."""
        if not self.is_free(target):
            return None
        member = uuid.uuid4().hex
        with self._lock:
            self._known.add(member)
        try:
            taken = self._database.write(lambda commit: turns.enter_if_free(commit, member, target, self._database.owner))
        except VolgateError:
            self.leave(member)
            raise
        if taken:
            return lambda: self._let_go(member)
        self.leave(member)
        return None

    def is_free(self, target: str) -> bool:
        """Look. Raises Unreachable (DATABASE_DOWN)."""
        with self._database.read() as connection:
            return turns.is_free(connection, target)

    def _let_go(self, member: str) -> None:
        """Give a turn up; if the database is away now, `poll` does it when it is back."""
        try:
            self._database.write(lambda commit: self.end(commit, member))
        except VolgateError as error:
            _log.info("a turn is given up later", error=error.message)
        self.leave(member)

    def _call(self, member: str) -> None:
        with self._lock:
            ready = self._waiting.pop(member, None)
        if ready is not None:
            ready()


def _drop(commit: Commit, *, lost: list[str]) -> None:
    turns.drop_holds(commit, lost)


def _busy(target: str, timeout: float) -> Busy:
    return Busy(f"{target} is busy with other operations for {timeout:g} s")
