"""A pytest plugin: a test marked `kernel` runs in a guest of the kernel lab and is reported as if it had run here.

A module's tests run one after the other in one guest, which is this module's own and ends with it. What the guest cannot report,
because it hangs, is reported here with its console, and the next test has a new guest.

QEMU before 8.1 may translate a page of code while another processor writes to it (mended by its commit deba78709a). A kernel that patches
itself, as when the first iSCSI session begins, may then die of a breakpoint that it has taken away. That is told by the words of its death,
and nothing that a test does can cause it: the test is run again, once, and the run's summary says so.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.labs.kernel.control import Failed
from tests.labs.kernel.coverage import COVERAGE, collect, measured

__all__ = ["pytest_addoption", "pytest_configure"]

MARK = "kernel"
BEGIN_SECONDS = 240.0
DEFAULT_SECONDS = 180.0
END_SECONDS = 60.0
CONSOLE_LINES = 100
MISTRANSLATED = "Oops: int3"
AGAIN = "run again"
COMPILED = (
    "gateway",
    "plugins",
    "clients/python",
    "tests",
)  # here, once: the guest sees them read-only, and would compile for each process
# Those of the run outside that decide how a test runs or looks; what the guest does with its screen and its disk is its own affair.
OPTIONS = ("tbstyle", "showlocals", "verbose", "showcapture")
WITHOUT = ("cacheprovider", "xdist", "hypothesispytest")  # the last one costs an emulated machine ten seconds, and only tells statistics
_seconds = pytest.StashKey[float]()
_arrived = pytest.StashKey[pytest.TestReport]()


class GuestLost(Exception):
    """The guest, or the pytest in it, told nothing more."""


class Session:
    """A guest, and the pytest in it that runs one module."""

    def __init__(self, config: pytest.Config, module: Path) -> None:
        """Start the guest, and pytest in it. Raises GuestLost with its words if the module cannot be collected there."""
        from tests.labs.kernel.machine import ENV, ROOT, Machine

        self.module, self._config = module, config
        for folder in COMPILED:
            compileall.compile_dir(ROOT / folder, quiet=2)
        self.machine = Machine()
        self._port = socket.socket(socket.AF_UNIX)
        self._lines = self._port.makefile("rb")
        self._pytest = 0
        self._busy = True
        try:
            self.machine.start()
            self._port.connect(str(self.machine.base / "tests"))
            env = {**ENV, **_environment(), "PYTHONDONTWRITEBYTECODE": "1", "VOLGATE_KERNEL_LAB": "1"}
            run = measured(sys.executable, "tests.labs.kernel.inside")
            self._pytest = self.machine.agent.start(
                ["/bin/bash", "-c", f'cd {ROOT} && exec "$@" >/share/pytest.log 2>&1', "sh", *run], env, capture=False
            )
            self._send({"arguments": _arguments(config, module), "options": _options(config)})
            self._until("ready", BEGIN_SECONDS)
            self._busy = False
        except BaseException:  # whatever it was, no guest stays
            self.end()
            raise

    def run(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[pytest.TestReport]:
        """Run a test; its reports come as they are made. Raises GuestLost."""
        self._busy = True
        self._send({"run": [item.nodeid, following.nodeid if following else None]})
        for told in self._until("done", item.stash[_seconds] + self._config.getoption("--kernel-grace")):
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=told["report"])
            assert isinstance(report, pytest.TestReport)
            if isinstance(report.longrepr, list):  # JSON knows no tuples, and a skip's place is one
                report.longrepr = tuple(report.longrepr)
            yield report
        self._busy = False

    def end(self) -> None:
        """Let the pytest in the guest finish, unless it is in the middle of a test, and end the guest."""
        with contextlib.suppress(GuestLost, Failed, OSError):
            if not self._busy:
                self._send({"run": None})
                self._until("ended", END_SECONDS)
                self.machine.finished(self._pytest, END_SECONDS)  # what it writes at its end is there
                collect(self.machine.share)
        self._lines.close()
        self._port.close()
        self.machine.stop()

    def _send(self, message: dict[str, Any]) -> None:
        self._port.sendall(json.dumps(message).encode() + b"\n")

    def _until(self, last: str, seconds: float) -> list[dict[str, Any]]:
        deadline, told = time.monotonic() + seconds, list[dict[str, Any]]()
        while True:
            message = self._receive(deadline, seconds)
            if last in message:
                return told
            if "ended" in message or "broken" in message:
                raise GuestLost(message.get("broken") or f"the pytest in the guest ended: {message['ended']}\n{self.log()}")
            told.append(message)

    def _receive(self, deadline: float, seconds: float) -> dict[str, Any]:
        self._port.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise GuestLost(f"the guest did not answer within {seconds:.0f} s and was killed\n{self.log()}") from error
        if not line.endswith(b"\n"):
            raise GuestLost(f"the guest is gone\n{self.log()}")
        return dict(json.loads(line))

    def log(self) -> str:
        """What the pytest in the guest printed last."""
        path = self.machine.share / "pytest.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""


class Delegate:
    """The hooks."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._session: Session | None = None

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Let nobody here stop a test that runs there: it is stopped there, and its guest by us."""
        if item.get_closest_marker(MARK):
            mark = item.get_closest_marker("timeout")
            item.stash[_seconds] = float(mark.args[0] if mark and mark.args else item.config.getini("timeout") or DEFAULT_SECONDS)
            item.add_marker(pytest.mark.timeout(0), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a marked test in its module's guest."""
        if not item.get_closest_marker(MARK):
            return None
        # Packages that the test before left set up for this one: no phase of ours takes them down before the next test's set-up.
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        following = nextitem if nextitem and nextitem.path == item.path and nextitem.get_closest_marker(MARK) else None
        for report in self._told(item, following):
            item.ihook.pytest_runtest_logreport(report=self._made(item, report))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if following is None:
            self._end()
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> pytest.TestReport | None:
        """The report that came, for those who look at every report that is made (the suite of backends, the rule of whole runs)."""
        return item.stash.get(_arrived, None)

    @staticmethod
    def _made(item: pytest.Item, report: pytest.TestReport) -> pytest.TestReport:
        def again() -> None:
            if report.failed:
                raise AssertionError(report.longreprtext.strip().rpartition("\n")[2])

        item.stash[_arrived] = report
        call = pytest.CallInfo.from_call(again, report.when or "call")
        call.duration = report.duration
        made = item.ihook.pytest_runtest_makereport(item=item, call=call)
        assert isinstance(made, pytest.TestReport)
        return made

    def pytest_sessionfinish(self) -> None:
        """Leave no guest, whatever ended the run."""
        self._end()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name what was run again."""
        for report in [report for reports in terminalreporter.stats.values() for report in reports]:
            for name, why in getattr(report, "user_properties", ()):
                if name == AGAIN and report.when == "call":
                    terminalreporter.write_line(f"{AGAIN}: {report.nodeid}: {why}")

    def _reports(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[pytest.TestReport]:
        try:
            yield from self._run(item, following)
        except GuestLost:
            console = self._session.machine.console() if self._session else ""
            if MISTRANSLATED not in console:
                raise
            self._lose()
            for report in self._run(item, following):
                report.user_properties.append((AGAIN, f"the emulator broke its first guest ({MISTRANSLATED})"))
                yield report

    def _run(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[pytest.TestReport]:
        if self._session is None or self._session.module != item.path:
            self._end()
            self._session = Session(item.config, item.path)
        yield from self._session.run(item, following)

    def _lose(self) -> None:
        if self._session is not None:
            self._session.machine.kill()
        self._end()

    def _told(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[pytest.TestReport]:
        began = time.time()
        try:
            yield from self._reports(item, following)
        except Exception as error:  # a lab that fails is a failure of the test that asked for it, and no end of the run
            console = self._session.machine.console() if self._session else ""
            told = "\n".join([f"{type(error).__name__}: {error}", "--- the guest's console:", *console.splitlines()[-CONSOLE_LINES:]])
            self._lose()
            words = dict.fromkeys(item.keywords, 1)
            now = time.time()
            yield pytest.TestReport(item.nodeid, item.location, words, "failed", told, "call", duration=now - began, start=began, stop=now)

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end()


def _arguments(config: pytest.Config, module: Path) -> list[str]:
    without = [word for name in WITHOUT for word in ("-p", f"no:{name}")]
    arguments = [str(module), "-p", __name__, *without, "-c", str(config.inipath), "--rootdir", str(config.rootpath)]
    return [*arguments, *(word for given in config.getoption("override_ini") or () for word in ("-o", given))]


def _options(config: pytest.Config) -> dict[str, Any]:
    return {name: value for name, value in vars(config.option).items() if name in OPTIONS or name.startswith("conformance_")}


def _environment() -> dict[str, str]:
    """What decides how tests run."""
    return {name: value for name, value in os.environ.items() if name.startswith(("VOLGATE_", COVERAGE)) or name == "CI"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how long a guest may be deaf."""
    words = "seconds that a test may take longer than its timeout until its guest is killed: the guest's own pytest is to tell first"
    parser.getgroup("kernel lab").addoption("--kernel-grace", type=float, default=60.0, help=words)


def pytest_configure(config: pytest.Config) -> None:
    """Be there, but not in the guest."""
    config.addinivalue_line("markers", f"{MARK}: runs in a guest of the kernel lab, with a kernel of its own")
    if "VOLGATE_KERNEL_LAB" not in os.environ:
        config.pluginmanager.register(Delegate(), "kernel-lab")
