"""The judge in an emulated guest: a call of a backend takes seconds there, and a full count would take days."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soaking import SOAK
from volgate.conformance import Conformance

__all__ = ["InAGuest"]

_LONG = {"victims", "own_temporary_files"}


class InAGuest(Conformance):
    """`points`: system calls of each mutation at most, 0: all."""

    points = 0

    @classmethod
    def lacks(cls, fixtures):
        if not SOAK and _LONG & {*fixtures}:
            return "make soak runs it: kills, and lives repeated, take minutes of an emulated machine"
        return super().lacks(fixtures)

    @pytest.fixture
    def conformance_options(self, conformance_options):
        points = min(conformance_options.points or self.points, self.points) if self.points else conformance_options.points
        return replace(conformance_options, points=points) if SOAK else replace(conformance_options, points=1, examples=1)
