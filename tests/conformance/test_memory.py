"""The memory plugin before the judge: its array is a process of its own, which outlives workers that are killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.memory_rig import Array
from volgate.conformance import Conformance
from volgate.conformance.picture import PAGE
from volgate_plugins.memory import Memory


class TestMemory(Conformance):
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
        root = Path(table["socket"]).parent / "bytes"
        path = root / f"foreign-{os.urandom(4).hex()}"
        with path.open("wb") as file:
            file.truncate(size)
            for offset in (0, size - PAGE):
                os.pwrite(file.fileno(), b"\xad" * PAGE, offset)
        return path.name
