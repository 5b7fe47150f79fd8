"""The memory plugin before the judge: its array is a process of its own, which outlives workers that are killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.judged.judge import Judge
from tests.plugins.memory_rig import Array
from volgate_plugins.memory import Memory


class TestMemory(Judge):
    backend_class = Memory

    @pytest.fixture
    def array(self, tmp_path: Path) -> Iterator[Array]:
        made = Array(tmp_path / "array")
        yield made
        made.stop()

    @pytest.fixture
    def table(self, array: Array):
        return {"socket": str(array.socket)}

    def litter(self, table):
        return Array.of(Path(table["socket"])).objects()

    def foreign(self, table, size: int) -> str:
        return super().foreign({"path": str(Path(table["socket"]).parent / "bytes")}, size)
