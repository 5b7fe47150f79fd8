"""The directory plugin before the judge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from volgate.conformance import Conformance
from volgate.conformance.picture import PAGE
from volgate_plugins.directory import Directory


class TestDirectory(Conformance):
    backend_class = Directory

    @pytest.fixture
    def table(self, tmp_path: Path):
        return {"path": str(tmp_path / "pool")}

    def litter(self, table):
        root = Path(table["path"])
        for path in root.rglob("*"):
            if path.is_file() and not path.name.startswith(".probe."):
                yield str(path.relative_to(root))

    def foreign(self, table, size: int) -> str:
        path = Path(table["path"]) / f"foreign-{os.urandom(4).hex()}"
        with path.open("wb") as file:
            file.truncate(size)
            for offset in (0, size - PAGE):
                os.pwrite(file.fileno(), b"\xad" * PAGE, offset)
        return path.name
