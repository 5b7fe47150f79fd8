"""A pytest plugin: a run of everything takes a share of the tests that are marked `drawn`, by a seed; it is that of the whole run.

`drawn(N)`, of a module or of one test with its parameters: N of them are taken. `drawn(N, turns=T)`: they are in every T-th run only.
`drawn(turns=T)`: all of them are, then.
`make soak`, and a run of what was named, take all.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count, groupby

import pytest

from tests.soaking import SOAK

__all__ = ["pytest_collection_modifyitems", "pytest_configure", "pytest_report_header"]

MARK = "drawn"
SEED = "VOLGATE_DRAWN_BY"


def pytest_configure(config: pytest.Config) -> None:
    """Know the mark, and the seed before any process of the run is started."""
    _seed()
    config.addinivalue_line(
        "markers",
        f"{MARK}(number, turns): a run of everything, or every so manyth, takes so many of a module's tests, or of a test's parameters",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not drawn."""
    if SOAK or not config.pluginmanager.hasplugin("tests.wholeness"):
        return
    left, turns = set[pytest.Item](), defaultdict[int, Iterator[int]](lambda: count(_seed()))
    for _, found in groupby(sorted(items, key=_drawn_with), _drawn_with):
        marked = [item for item in found if item.get_closest_marker(MARK)]
        if marked:
            left |= set(_left(marked, turns))
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]


def pytest_report_header() -> str:
    """Say what repeats the draw."""
    return f"drawn by seed {_seed()} (VOLGATE_SEED={_seed()} draws the same tests)"


def _drawn_with(item: pytest.Item) -> tuple[str, str]:
    """The module, and the test if the mark is its own."""
    own = any(mark.name == MARK for mark in item.own_markers)
    return str(item.path), getattr(item, "originalname", item.name) if own else ""


def _left(marked: list[pytest.Item], turns: Mapping[int, Iterator[int]]) -> list[pytest.Item]:
    mark = marked[0].get_closest_marker(MARK)
    assert mark is not None
    every = mark.kwargs.get("turns", 1)
    number = 0 if next(turns[every]) % every else min([len(marked), *mark.args])
    drawn = random.Random(_seed()).sample(range(len(marked)), number)
    return [item for place, item in enumerate(marked) if place not in drawn]


def _seed() -> int:
    """One for all processes of a run: the workers have the environment of who started them."""
    os.environ.setdefault(SEED, os.environ.get("VOLGATE_SEED") or str(time.time_ns() % 1_000_000_007))
    return int(os.environ[SEED])
