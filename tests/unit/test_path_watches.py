"""How often paths are looked at while somebody watches them: counted on a clock of the test's own, on which no machine is slow."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from contextlib import aclosing
from typing import cast

import pytest

from volgate.edge.path_watches import PathWatches
from volgate.edge.wait import Calls
from volgate.model import Path, PathState, Redundancy

BOUND = 2.0
"""Seconds from what is so to the message that tells it: of the contract."""
LOOKS = 50


class Selector(selectors.DefaultSelector):
    """Nothing is waited for: the time has come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        self.now += 0.0 if found else timeout or 0.0
        return found


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class World:
    """Ways that break and come back, and those who look at them, each look `seconds` long."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.looks, self.up = seconds, list[float](), True
        self.gateway = self

    def list_paths(self, name: str) -> None:
        """Only named: `ask` does it."""

    async def ask(self, _lane: str, _function: object, name: str) -> tuple[list[Path], Redundancy]:
        self.looks.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds / 2)
        seen = (PathState.ACTIVE, Redundancy.SINGLE) if self.up else (PathState.FAILED, Redundancy.DOWN)
        await asyncio.sleep(self.seconds / 2)
        return [Path("iscsi", "a", "b", name, seen[0])], seen[1]


def run(test: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(test)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.99])
def test_what_a_look_can_see_is_told_within_two_seconds(seconds: float) -> None:
    world = World(seconds)

    async def scenario() -> None:
        watches, clock = PathWatches(cast("Calls", world)), asyncio.get_running_loop().time
        async with aclosing(watches.follow("a")) as told:
            await anext(told)
            for number in range(LOOKS):
                await asyncio.sleep(0.137 * (number % 11))  # at every moment of a round
                world.up, since = not world.up, clock()
                paths, _ = await anext(told)
                assert (paths[0].state is PathState.ACTIVE) == world.up and clock() - since < BOUND
        between = [late - early for early, late in zip(world.looks, world.looks[1:], strict=False)]
        assert len(between) > LOOKS and max(between) < BOUND / 2 + 1e-6

    run(scenario())


def test_many_who_watch_share_the_looks_and_nobody_looks_when_nobody_watches() -> None:
    world = World(0.0)

    async def reader(watches: PathWatches) -> None:
        async with aclosing(watches.follow("a")) as told:
            async for _ in told:
                pass

    async def scenario() -> None:
        watches = PathWatches(cast("Calls", world))
        readers = [asyncio.create_task(reader(watches)) for _ in range(20)]
        await asyncio.sleep(LOOKS)
        assert LOOKS - 1 <= len(world.looks) <= LOOKS + 1
        for one in readers:
            one.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        before = len(world.looks)
        await asyncio.sleep(LOOKS)
        assert len(world.looks) == before

    run(scenario())
