"""The same work for every pool, or every host, side by side: one that hangs keeps no other waiting, and is not begun twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Generic, Protocol, TypeVar

from volgate.lanes import Lane

__all__ = ["Sweep"]

_MOST = 1 << 16


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T")
N = TypeVar("N", bound=_Named)


class Sweep(Generic[N, T]):
    """A thread for each item whose work has not ended, at most `width`; used by one thread at a time."""

    def __init__(self, name: str, width: int = 4096) -> None:
        """Items may come and go."""
        self._lane = Lane(name, width, _MOST)  # a thread is started for each that is needed
        self._running: dict[str, Future[T]] = {}

    def run(self, items: Iterable[N], work: Callable[[N], T], seconds: float | None = None) -> dict[str, T]:
        """Work on the items; return the answers by name, without those that take longer than `seconds`: they go on by themselves.

        What an earlier round left going on is neither begun again nor waited for; its answer comes when it is there. Raises what
        work raised, when the others have ended.
        """
        begun = {item.name: self._lane.submit(work, item) for item in items if item.name not in self._running}
        self._running |= begun
        wait(begun.values(), seconds)
        ended = {name: future for name, future in self._running.items() if future.done()}
        for name in ended:
            del self._running[name]
        return {name: future.result() for name, future in ended.items()}

    def close(self) -> None:
        """Begin nothing more; what runs ends by itself."""
        self._lane.close()
