"""A pytest plugin for runs of everything: what is skipped, expected to fail or deselected must be in tests/left_out.txt."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

_LIST = Path(__file__).with_name("left_out.txt")


def allowed(name: str) -> bool:
    """Whether the list has a pattern for a test's id."""
    lines = _LIST.read_text(encoding="utf-8").splitlines()
    return any(fnmatchcase(name, line) for line in lines if line and not line.startswith("#"))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Refuse the run."""
    if unknown := [item.nodeid for item in items if not allowed(item.nodeid)]:
        sys.stderr.write(f"deselected, and not in {_LIST.name}: {unknown}\n")  # of a worker's error xdist shows nothing
        raise pytest.UsageError(f"deselected, and not in {_LIST.name}: {', '.join(unknown)}")


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Fail a test that was skipped, or was expected to fail."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if (report.skipped or hasattr(report, "wasxfail")) and not allowed(item.nodeid):
        report.outcome, report.longrepr = "failed", f"skipped or expected to fail, and not in {_LIST.name}: {report.longrepr}"
        vars(report).pop("wasxfail", None)
