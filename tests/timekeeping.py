"""A pytest plugin for runs of everything: long files first, failures told when they happen, times in build/, an end while it can be told."""

from __future__ import annotations

import os
import time
from itertools import zip_longest
from pathlib import Path

import pytest

__all__ = ["pytest_collection_modifyitems", "pytest_configure"]

TIMES = Path(__file__).resolve().parents[1] / "build" / "test-times.tsv"
MINUTES = "VOLGATE_TEST_MINUTES"
END = "VOLGATE_TEST_END"  # seconds since the epoch, for the workers, which are started later
TOLD_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    """Keep time where the whole run is known; its end is kept by each process, after the test that it is at."""
    os.environ.setdefault(END, str(time.time() + 60 * float(os.environ.get(MINUTES, "80"))))
    config.pluginmanager.register(_End(), "volgate-end")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Timekeeper(config), "volgate-timekeeper")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests may take longest, so that no process is alone with one at the end (`--no-loadscope-reorder`).

    Those that run in a guest take turns with others: two emulated machines are more than two cores.
    """
    here, guests = dict[Path, float](), dict[Path, float]()
    for item in items:
        mark, kind = item.get_closest_marker("timeout"), guests if item.get_closest_marker("kernel") else here
        kind[item.path] = max(kind.get(item.path, 0.0), mark.args[0] if mark else 0.0)
    ordered = [sorted(kind, key=lambda path: -kind[path]) for kind in (here, guests)]
    place = {path: number for number, path in enumerate(path for pair in zip_longest(*ordered) for path in pair if path)}
    items.sort(key=lambda item: place[item.path])


class _End:
    """Ends a run that takes too long with what it has, as a failed one."""

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Know what to stop."""
        self._session = session

    def pytest_runtest_logfinish(self) -> None:
        """Begin no other test when it is late."""
        if time.time() > float(os.environ[END]):
            self._session.shouldstop = f"the time is over ({MINUTES}): the rest was not run"


class _Timekeeper:
    """A line of the file: when it ended (seconds of the run), what it took (seconds), the worker, the phase, the outcome, the test."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._began = config, time.monotonic()
        self._times = Path(os.environ.get("VOLGATE_TEST_TIMES") or TIMES)
        self._times.parent.mkdir(exist_ok=True)
        self._times.write_text("", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a phase of a test; tell of one that failed, for a run that is cut off tells nothing at its end."""
        spent = time.monotonic() - self._began
        worker = getattr(report, "worker_id", "here")
        with self._times.open("a", encoding="utf-8") as file:
            print(f"{spent:.0f}", f"{report.duration:.1f}", worker, report.when, report.outcome, report.nodeid, sep="\t", file=file)
        if report.failed:
            told = "\n".join(report.longreprtext.splitlines()[-TOLD_LINES:])
            self._write(f"\n[{spent:.0f} s, {worker}] {report.when} of {report.nodeid} failed:\n{told}\n")

    def _write(self, text: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if isinstance(terminal, pytest.TerminalReporter):
            terminal.write_line(text)
