"""FIFO per object: an operation runs when it is first in the queue of each object that it locks.

All queues are entered at once under one lock, so there is no order in which two operations could wait for each other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Queues"]


class Queues:
    """The queues of all objects; an object without operations has none."""

    def __init__(self) -> None:
        """Start with no queues."""
        self._lock = threading.Lock()
        self._queues: dict[str, deque[Hashable]] = {}
        self._keys: dict[Hashable, tuple[str, ...]] = {}
        self._ready: dict[Hashable, Callable[[], None]] = {}

    def enter(self, member: Hashable, keys: tuple[str, ...], ready: Callable[[], None]) -> None:
        """Queue `member` for `keys`; `ready` is called, outside the lock, when it is first everywhere."""
        with self._lock:
            self._keys[member] = keys
            self._ready[member] = ready
            for key in keys:
                self._queues.setdefault(key, deque()).append(member)
            call = self._take_if_first(member)
        if call:
            call()

    def leave(self, member: Hashable) -> None:
        """Remove `member` and start those that are first now."""
        calls: list[Callable[[], None]] = []
        with self._lock:
            self._ready.pop(member, None)
            for key in self._keys.pop(member, ()):
                queue = self._queues[key]
                queue.remove(member)
                if not queue:
                    del self._queues[key]
                elif call := self._take_if_first(queue[0]):
                    calls.append(call)
        for call in calls:
            call()

    def __len__(self) -> int:
        """Members that run or wait."""
        return len(self._keys)

    def _take_if_first(self, member: Hashable) -> Callable[[], None] | None:
        if member in self._ready and all(self._queues[key][0] == member for key in self._keys[member]):
            return self._ready.pop(member)
        return None
