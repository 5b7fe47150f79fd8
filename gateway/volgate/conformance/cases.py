"""What marks a test of the suite: the level that it belongs to, the facets that it needs, and whether it can be asked over the wire.

The name of such a test is the name of the rule that it proves, its docstring the rule. Each rule has one test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import UnionType
from typing import Any, TypeVar

import pytest

from volgate.backend import Backend, Clones, DataPath

__all__ = ["MARK", "READABLE", "Case", "Level", "Need", "case", "proves", "words_of"]

F = TypeVar("F", bound=Callable[..., Any])
MARK = "conformance"
Need = type[Backend] | UnionType
"""A facet that a rule means nothing without, or facets of which one is enough."""
READABLE: Need = DataPath | Clones
"""How the content of a snapshot is read: as an image, or through a clone of it."""


class Level(IntEnum):
    """How deep the suite looks."""

    CONTRACT = 1
    DATA = 2
    CONCURRENCY = 3
    FAULTS = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One rule: its name, its words, the least level that looks at it, the facets without which it means nothing.

    `wire`: it can be asked of a gateway that serves the backend, with a gateway's means alone. `process`: it can be asked of a backend
    by itself; what cannot is what the gateway sees to. `content`: it looks at bytes, which go by import and export over the wire.
    """

    name: str
    words: str
    level: Level
    needs: tuple[Need, ...]
    wire: bool
    process: bool
    content: bool


def words_of(need: Need) -> str:
    """Name a need: `Clones`, or `DataPath or Clones`."""
    return need.__name__ if isinstance(need, type) else " or ".join(facet.__name__ for facet in need.__args__)


def proves(level: Level, *needs: Need, wire: bool = True, process: bool = True, content: bool = False) -> Callable[[F], F]:
    """Make a method `test_<rule>` the test of a rule."""

    def mark(function: F) -> F:
        name = function.__name__.removeprefix("test_").replace("_", "-")
        words = " ".join((function.__doc__ or "").split())
        marked: F = getattr(pytest.mark, MARK)(Case(name, words, level, needs, wire, process, content))(function)
        return marked

    return mark


def case(item: pytest.Item) -> Case | None:
    """The rule that a collected test proves, if it is one of the suite's."""
    marker = item.get_closest_marker(MARK)
    return marker.args[0] if marker else None
