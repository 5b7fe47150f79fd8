"""What the judge is given of backends that keep files below a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from volgate.conformance import Conformance
from volgate.conformance.picture import PAGE

_OWN = (".good-pool", ".spare", ".fences", ".hosts")


class Judge(Conformance):
    """Of those that are built like the good one."""

    @pytest.fixture
    def table(self, tmp_path: Path):
        return {"path": str(tmp_path / "pool")}

    def litter(self, table):
        root = Path(table["path"])
        found = [path for path in root.rglob("*") if path.is_file() and path.name not in _OWN and not path.name.startswith(".probe.")]
        return [str(path.relative_to(root)) for path in found]

    def foreign(self, table, size: int) -> str:
        path = Path(table["path"]) / f"foreign-{os.urandom(4).hex()}"
        with path.open("wb") as file:
            file.truncate(size)
            for offset in (0, size - PAGE):
                os.pwrite(file.fileno(), b"\xad" * PAGE, offset)
        return path.name


class JudgeOfSecrets(Judge):
    """Of those whose table holds a secret."""

    def with_secret(self, table, reference: str):
        return {**table, "password": reference}
