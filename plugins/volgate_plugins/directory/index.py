"""Names in memory: which object a name means and how much is promised to it; the folders on the storage stay the truth."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from volgate.errors import OutOfSpace
from volgate_plugins.directory.beside import Beside

__all__ = ["Entry", "Index", "Locks"]

_TICK_NS = 50_000_000  # a directory changed this lately may change again under the same time stamp


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: the name and uid of its volume and what counts against the limit."""

    name: str
    uid: str
    promised: int


class Index:
    """The objects of a pool."""

    def __init__(self, folder: str, read: Callable[[str], Entry]) -> None:
        """Watch `folder`; `read` makes the entry of one object."""
        self._folder = folder
        self._read = read
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._objects: dict[str, str] = {}
        self._held: dict[str, int] = {}
        self._seen = -1
        self._provisioned = 0

    def lookup(self, name: str) -> str | None:
        """Return the object of a name, looking at the folder again if it changed."""
        with self._lock:
            if name not in self._objects:
                self._refresh()
            return self._objects.get(name)

    def objects(self) -> list[tuple[str, str]]:
        """Return (name, object) pairs in order of name."""
        with self._lock:
            self._refresh()
            return sorted((entry.name, stored_as) for stored_as, entry in self._entries.items())

    def provisioned(self) -> int:
        """Return the sum of what is promised."""
        with self._lock:
            self._refresh()
            return self._sum()

    def put(self, stored_as: str, entry: Entry) -> None:
        """Note an object."""
        with self._lock:
            self._put(stored_as, entry)

    def drop(self, stored_as: str) -> None:
        """Forget an object."""
        with self._lock:
            self._drop(stored_as)

    @contextlib.contextmanager
    def promise(self, stored_as: str, entry: Entry, limit: int) -> Iterator[None]:
        """Hold `entry.promised` bytes while an object is made or grown; noted at the end, given back if the block fails.

        Raises OutOfSpace (OVERSUBSCRIBED).
        """
        with self._lock:
            self._refresh()
            old = self._promised(stored_as)
            would = self._sum() - old + entry.promised
            if limit and would > limit and entry.promised > old:
                raise OutOfSpace(
                    f"{entry.name}: with {entry.promised} bytes {would} would be promised, the pool's limit is {limit}; "
                    "delete volumes, enlarge the file system or raise `oversubscription`",
                    reason="OVERSUBSCRIBED",
                )
            self._held[stored_as] = entry.promised
        try:
            yield
            self.put(stored_as, entry)
        finally:
            with self._lock:
                del self._held[stored_as]

    def _sum(self) -> int:
        return self._provisioned + sum(max(0, held - self._promised(stored_as)) for stored_as, held in self._held.items())

    def _promised(self, stored_as: str) -> int:
        return self._entries[stored_as].promised if stored_as in self._entries else 0

    def _refresh(self) -> None:
        changed = os.stat(self._folder).st_mtime_ns
        if changed == self._seen:
            return
        present = set(os.listdir(self._folder))
        for stored_as in present - self._entries.keys():
            with contextlib.suppress(FileNotFoundError):
                self._put(stored_as, self._read(stored_as))
        for stored_as in self._entries.keys() - present:
            self._drop(stored_as)
        self._seen = changed if time.time_ns() - changed > _TICK_NS else -1

    def _put(self, stored_as: str, entry: Entry) -> None:
        self._drop(stored_as)
        self._entries[stored_as] = entry
        self._objects[entry.name] = stored_as
        self._provisioned += entry.promised

    def _drop(self, stored_as: str) -> None:
        entry = self._entries.pop(stored_as, None)
        if entry is None:
            return
        self._provisioned -= entry.promised
        if self._objects.get(entry.name) == stored_as:
            del self._objects[entry.name]


class Locks:
    """A lock per name, made when needed and forgotten when free; it keeps other controllers away too."""

    def __init__(self, beside: Beside) -> None:
        """Start without any."""
        self._beside = beside
        self._outer: set[str] = set()
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        """Hold the locks of all names, taken in sorted order."""
        with contextlib.ExitStack() as stack:
            for name in sorted(set(names)):
                stack.enter_context(self._one(name))
            yield

    @contextlib.contextmanager
    def _one(self, name: str) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(name, (threading.RLock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            with lock, self._outside(name):
                yield
        finally:
            with self._guard:
                lock, users = self._locks[name]
                self._locks[name] = (lock, users - 1)
                if users == 1:
                    del self._locks[name]

    @contextlib.contextmanager
    def _outside(self, name: str) -> Iterator[None]:
        """The lock that other processes see is taken once by the thread that holds ours."""
        if name in self._outer:
            yield
            return
        with self._beside.holding(name):
            self._outer.add(name)
            try:
                yield
            finally:
                self._outer.remove(name)
