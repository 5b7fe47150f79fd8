"""Who watches paths: one look a second for each attachment or volume, shared by all who watch it, and none when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from volgate.edge.wait import Calls
from volgate.errors import Busy, VolgateError
from volgate.model import Path, Redundancy

__all__ = ["PathWatches", "Seen"]

Seen = tuple[Sequence[Path], Redundancy]
_LOOK_SECONDS = 1.0
_MOST = 256
_LANE = "paths"
_TOLD = ("alua", "checker", "dm", "lun", "queueing", "session", "size")
"""Facts whose change is told; others, such as free bytes, change all the time."""


class _Watched:
    """What is watched by one or more readers: the newest look, how many changes there were, why it ended."""

    def __init__(self) -> None:
        self.readers = 0
        self.number = 0
        self.newest: Seen | None = None
        self.failure: VolgateError | None = None
        self.changed = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None


class PathWatches:
    """On the event loop; each look is taken in a lane of its own, so that one that hangs keeps no other call waiting."""

    def __init__(self, calls: Calls) -> None:
        """Nobody watches yet."""
        self._calls = calls
        self._watched: dict[str, _Watched] = {}

    async def follow(self, name: str) -> AsyncGenerator[Seen]:
        """The paths now and at each change; a slow reader gets the newest. Raises what a look raises, Busy."""
        watched = self._watched.get(name)
        if watched is None:
            if len(self._watched) >= _MOST:
                raise Busy(f"the paths of {_MOST} volumes are watched already; come back later")
            watched = self._watched[name] = _Watched()
            watched.task = asyncio.create_task(self._look(name, watched))
        watched.readers += 1
        seen = 0
        try:
            while True:
                async with watched.changed:
                    while watched.number == seen and watched.failure is None:
                        await watched.changed.wait()
                if watched.number == seen or watched.newest is None:
                    assert watched.failure is not None
                    raise watched.failure
                seen = watched.number
                yield watched.newest
        finally:
            watched.readers -= 1
            if not watched.readers:
                self._forget(name, watched)

    def _forget(self, name: str, watched: _Watched) -> None:
        if self._watched.get(name) is watched:
            del self._watched[name]
        if watched.task is not None:
            watched.task.cancel()

    async def _look(self, name: str, watched: _Watched) -> None:
        loop, before = asyncio.get_running_loop(), None
        while watched.failure is None:
            began = loop.time()
            try:
                found = await self._calls.ask(_LANE, self._calls.gateway.list_paths, name)
            except VolgateError as error:
                watched.failure = error
                if self._watched.get(name) is watched:
                    del self._watched[name]  # who comes now has a look of their own
            else:
                if (now := _described(found)) != before:
                    before, watched.newest = now, found
                    watched.number += 1
            async with watched.changed:
                watched.changed.notify_all()
            await asyncio.sleep(max(0.0, began + _LOOK_SECONDS - loop.time()))


def _described(seen: Seen) -> tuple[object, ...]:
    paths, redundancy = seen
    return (
        redundancy,
        *(
            (
                path.transport,
                path.initiator,
                path.target,
                path.device,
                path.state,
                path.priority_group,
                path.last_error,
                *(path.facts.get(fact) for fact in _TOLD),
            )
            for path in paths
        ),
    )
