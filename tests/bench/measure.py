"""Pairs of durations measured in turns, and what they come to: percentiles, and the median of their ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

MS = 1000.0


@dataclass(frozen=True)
class Row:
    """One result: `ours` and `reference` in the row's unit; `reference` and `ratio` are None where there is nothing beside it."""

    name: str
    ours: float
    reference: float | None = None
    ratio: float | None = None


@dataclass
class Pairs:
    """Durations in seconds, ours and the reference's, round by round."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    @contextmanager
    def our_turn(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.ours.append(time.perf_counter() - began)

    @contextmanager
    def their_turn(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.reference.append(time.perf_counter() - began)

    def rows(self, name: str) -> list[Row]:
        """Return the rows `NAME p50` and `NAME p99`, in milliseconds; the first round warms up and is left out."""
        ours, theirs = self._warm()
        ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
        low, high = percentile(ours, 0.99), percentile(theirs, 0.99)
        middle = Row(f"{name} p50", statistics.median(ours) * MS, statistics.median(theirs) * MS, statistics.median(ratios))
        return [middle, Row(f"{name} p99", low * MS, high * MS, low / high)]

    def middle(self, name: str) -> Row:
        """Return one row: the medians in milliseconds, and the median of the ratios."""
        return replace(self.rows(name)[0], name=name)

    def _warm(self) -> tuple[list[float], list[float]]:
        if len(self.ours) != len(self.reference) or len(self.ours) < 2:
            raise ValueError(f"{len(self.ours)} turns of ours and {len(self.reference)} of the reference are no pairs")
        return self.ours[1:], self.reference[1:]


def percentile(values: list[float], fraction: float) -> float:
    """Return the smallest value that is not below `fraction` of them (nearest rank)."""
    return sorted(values)[math.ceil(fraction * len(values)) - 1]


def interleave(rounds: Iterable[int], ours: Callable[[int], object], reference: Callable[[int], object]) -> Pairs:
    """Run ours, reference, ours, reference, ... and return the durations."""
    pairs = Pairs()
    for number in rounds:
        with pairs.our_turn():
            ours(number)
        with pairs.their_turn():
            reference(number)
    return pairs
