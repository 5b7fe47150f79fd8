"""The same work for every pool, side by side: one that hangs keeps no other waiting, and is not begun twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from volgate.lanes import Lane
from volgate.pools import Pool

__all__ = ["Sweep"]

T = TypeVar("T")
_MOST_POOLS = 4096


class Sweep(Generic[T]):
    """One thread for each pool whose work has not ended; used by one thread at a time."""

    def __init__(self, name: str) -> None:
        """Pools may come and go."""
        self._lane = Lane(name, _MOST_POOLS, _MOST_POOLS)  # a thread is started for each that is needed
        self._running: dict[str, Future[T]] = {}

    def run(self, pools: Iterable[Pool], work: Callable[[Pool], T], seconds: float | None = None) -> dict[str, T]:
        """Work on the pools; return the answers by name, without those that take longer than `seconds`: they go on by themselves.

        What an earlier round left going on is neither begun again nor waited for; its answer comes when it is there. Raises what
        work raised, when the others have ended.
        """
        begun = {pool.name: self._lane.submit(work, pool) for pool in pools if pool.name not in self._running}
        self._running |= begun
        wait(begun.values(), seconds)
        ended = {name: future for name, future in self._running.items() if future.done()}
        for name in ended:
            del self._running[name]
        return {name: future.result() for name, future in ended.items()}

    def close(self) -> None:
        """Begin nothing more; what runs ends by itself."""
        self._lane.close()
