"""The command line against a real gateway: run in this process where that is enough, as a process where that is the point."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.edge.server import Server
from volgate.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def tree(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.err)["error"])

    @property
    def lines(self) -> list[list[str]]:
        """Table rows without the header, cells apart by two blanks."""
        return [[cell.strip() for cell in line.split("  ") if cell] for line in self.out.splitlines()[1:]]


class Cli:
    """`volgate --server ADDRESS ...`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, *words: str, status: int = 0) -> Ran:
        """Run in this process and check the status."""
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(["--server", self.address, *words])
            except SystemExit as ended:
                code = ended.code or 0
        ran = Ran(code, out.getvalue(), err.getvalue())
        assert ran.status == status, ran
        assert "Traceback" not in ran.err
        return ran

    def json(self, *words: str) -> Any:
        """Run with --output json and read the answer."""
        return self(*words, "--output", "json").tree

    def process(self, *words: str, status: int = 0, **options: Any) -> Ran:
        """Run as a process."""
        return process("--server", self.address, *words, status=status, **options)


def process(*words: str, status: int = 0, env: dict[str, str] | None = None) -> Ran:
    """`volgate ...` as a process, without a server given."""
    line = [sys.executable, "-m", "volgate.cli", *words]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert ran.status == status, ran
    assert "Traceback" not in ran.err
    return ran


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    top = Path(tempfile.mkdtemp(prefix="vg-cli-", dir="/tmp"))
    (top / "exports").mkdir()
    made = Server(top / "state", config=f'[exports]\nallowed_directories = ["{top}/exports"]\n').start()
    try:
        yield made
    finally:
        assert made.stop() == 0
        shutil.rmtree(top)


@pytest.fixture
def cli(server: Server) -> Cli:
    return Cli(server.address)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder with a path short enough for a socket."""
    top = Path(tempfile.mkdtemp(prefix="vg-cli-", dir="/tmp"))
    yield top
    shutil.rmtree(top)
