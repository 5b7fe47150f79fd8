"""A process that has imported all but the mutated package, and forks itself into a box for each trial: `python -m tests.mutation.server FOLDER`.

It reads a line of JSON for each trial, and answers each with one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

import volgate.backend
import volgate.conformance
from tests.mutation.box import confine, replace_file, run_apart

ROOT = Path(__file__).parents[2]
MUTATED = "volgate_plugins.directory"
PACKAGE = ROOT / "plugins" / "volgate_plugins" / "directory"
KILLERS = (
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/plugins/test_directory*.py")),
    "tests/unit/test_qcow2_growth.py",
    "tests/conformance/test_directory.py",
)
# These take a second each: what starts a process per step, and hypothesis with a search of its own.
_SLOW = ("test_a_crash_at_every_change", "TestTree")
_OPTIONS = (
    *("-q", "-x", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")),
    *("-o", "timeout=10"),  # seconds: a mutant that hangs mostly does so in a test that takes a tenth of one
)
_CONFORMANCE = ("--conformance-level", "3", "--conformance-examples", "2", "--conformance-seed", "1")


class Chosen:
    """Runs the tests that were asked for, in that order; tells which failed, and which lines each reaches, if that was asked."""

    def __init__(self, names: list[str] | None) -> None:
        self.names = names
        self.failed = ""
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, list[tuple[str, int]]] = {}
        self._now: set[tuple[str, int]] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what nobody asked for; a module that cannot be imported has no tests, and is told as an error."""
        by_name = {item.nodeid: item for item in items if not any(word in item.nodeid for word in _SLOW)}
        items[:] = [by_name[name] for name in (by_name if self.names is None else self.names) if name in by_name]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Note where the test comes by."""
        self._now = set()
        try:
            return (yield)
        finally:
            self.lines[item.nodeid] = sorted(self._now)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how it went."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def trace(self, frame: Any, _event: str, _argument: object) -> Any:
        """Follow the package, and nothing else."""
        return self._step if frame.f_code.co_filename.startswith(f"{PACKAGE}/") else None

    def _step(self, frame: Any, event: str, _argument: object) -> Any:
        if event == "line":
            self._now.add((os.path.basename(frame.f_code.co_filename), frame.f_lineno))
        return self._step


def _trial(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """In the box: run the tests on the changed file."""
    for descriptor in (1, 2):
        os.dup2(os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if asked["file"]:
        replace_file(asked["file"], asked["source"], folder)
    os.chdir(folder)
    chosen = Chosen(asked["tests"])
    if asked["tests"] is None:
        threading.settrace(chosen.trace)
        sys.settrace(chosen.trace)
    names = KILLERS if asked["tests"] is None else dict.fromkeys(name.partition("::")[0] for name in asked["tests"])
    status = pytest.main([*_OPTIONS, *_CONFORMANCE, "--basetemp", f"{folder}/t", *(str(ROOT / name) for name in names)], plugins=[chosen])
    sys.settrace(None)
    output = Path(f"{folder}/output").read_text(encoding="utf-8", errors="replace")[-3000:]
    return {"status": int(status), "failed": chosen.failed, "seconds": chosen.seconds, "lines": chosen.lines, "output": output}


def _import_all_else() -> None:
    """What every trial would import: pytest and its plugins, the gateway, the suite."""
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([*_OPTIONS, "--collect-only", str(ROOT / "tests/mutation/__init__.py")])
    for package in (volgate.backend, volgate.conformance):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith((".served", ".remote")):
                importlib.import_module(module.name)
    assert MUTATED not in sys.modules


def main() -> None:
    """Serve until standard input ends; the argument is the folder that each trial finds empty."""
    folder = sys.argv[1]
    os.environ.update(TMPDIR=folder, HOME=folder, PYTHONDONTWRITEBYTECODE="1")
    tempfile.tempdir, sys.dont_write_bytecode = None, True
    _import_all_else()
    confine()
    for line in sys.stdin:
        asked = json.loads(line)
        ended = run_apart(folder, lambda asked=asked: _trial(asked, folder), asked["deadline"])
        print(json.dumps({"answer": ended.answer, "long": ended.long}), flush=True)


if __name__ == "__main__":
    main()
