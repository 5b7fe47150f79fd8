"""The pytest plugin: chooses the tests by the facets of the backend, says what it left out, and reports what was proven.

pytest loads it wherever volgate is installed; a run without tests of the suite does not notice it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    # imported where they are used: every run of pytest in an environment with volgate loads this module
    from volgate.conformance.cases import Case
    from volgate.conformance.options import Options
    from volgate.conformance.report import Report
    from volgate_client.target import Files

_MARK = "conformance"
_FILES = ("certificate", "key", "authority")
pytest.register_assert_rewrite("volgate.conformance")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("volgate conformance")
    group.addoption("--conformance-level", type=int, choices=(1, 2, 3, 4), default=4, help="1 contract, 2 data, 3 concurrency, 4 faults")
    group.addoption("--conformance-points", type=int, default=2, help="system calls of each mutation that are killed or failed; 0: all")
    group.addoption("--conformance-examples", type=int, default=5, help="sequences of verbs that are compared with the model")
    group.addoption("--conformance-seed", type=int, default=0, help="repeat the run that printed this seed; 0: draw one")
    group.addoption("--conformance-server", default="", help="for volgate.conformance.served: the gateway's address")
    for name in _FILES:
        group.addoption(f"--conformance-{name}", default="", help="for volgate.conformance.served by TCP: the client's file in PEM")
    group.addoption("--conformance-pool", default="", help="for volgate.conformance.served: the pool")
    group.addoption("--conformance-report", default="", help="write the report to this file, as JSON; an array, if several are judged")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and the part of the plugin that has work to do."""
    config.addinivalue_line("markers", f"{_MARK}(case): a test of volgate.conformance")
    config.pluginmanager.register(_Run(config), "volgate-conformance-run")
    if address := config.getoption("--conformance-server"):
        from volgate.conformance.options import Target

        files = {name: config.getoption(f"--conformance-{name}") for name in _FILES}
        Target.ask(address, config.getoption("--conformance-pool"), cast("Files", files)).choose()


class _Run:
    """One run of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reports: dict[type, Report] = {}
        self._options: Options | None = None

    @property
    def options(self) -> Options:
        """The bounds of the run."""
        from volgate.conformance.cases import Level
        from volgate.conformance.options import Options

        if self._options is None:
            told = self._config.getoption
            self._options = Options(
                level=Level(told("--conformance-level")),
                points=told("--conformance-points"),
                examples=told("--conformance-examples"),
                seed=told("--conformance-seed") or time.time_ns() % 1_000_000_007,
                report=told("--conformance-report"),
            )
        return self._options

    @pytest.fixture
    def conformance_options(self) -> Options:
        """The bounds of the run, for the suite's own fixtures."""
        return self.options

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what the backend does not claim, and what lies deeper than was asked."""
        kept, left = list[pytest.Item](), list[pytest.Item]()
        for item in items:
            case = _case(item)
            reason = self._why_not(case, item) if case else ""
            if case and reason:
                self._note(case, item, "not run", detail=reason)
            (left if reason else kept).append(item)
        if left:
            config.hook.pytest_deselected(items=left)
            items[:] = kept

    def _why_not(self, case: Case, item: pytest.Item) -> str:
        from volgate.backend import DataPath
        from volgate.conformance.cases import words_of

        kind = item.cls  # type: ignore[attr-defined]  # a test of a class is a Function
        if kind.over_the_wire and not case.wire:
            return "it cannot be asked over the wire"
        if not kind.over_the_wire and not case.process:
            return "it is asked over the wire: the gateway sees to it"
        verb = _verb(item)
        needs = (*case.needs, *(verb.needs if verb else ()))
        if kind.over_the_wire and case.content and not issubclass(kind.backend_class, DataPath):
            return "its content goes by import and export over the wire: the backend has no DataPath"
        if missing := [words_of(need) for need in needs if not issubclass(kind.backend_class, need)]:
            return f"the backend has no {missing[0]}"
        if case.level > self.options.level:
            return f"level {int(case.level)} was not asked for"
        wanted = (*item.fixturenames, *(("make_foreign",) if verb and verb.foreign else ()))  # type: ignore[attr-defined]  # as above
        return str(kind.lacks(wanted))

    def _note(self, case: Case, item: pytest.Item, outcome: str, seconds: float = 0.0, detail: str = "") -> None:
        from volgate.conformance.report import Outcome

        verb = _verb(item)
        told = Outcome.of(case, verb.name if verb else "", outcome, seconds, detail)
        outcomes = self._report(item.cls).outcomes  # type: ignore[attr-defined]  # as above
        if outcome == "failed":  # on its way back, what passed before
            outcomes[:] = [other for other in outcomes if other.rule != told.rule]
        outcomes.append(told)

    def _report(self, kind: Any) -> Report:
        from volgate.backend import capabilities
        from volgate.conformance.in_process import find_offer
        from volgate.conformance.report import Report

        if kind not in self._reports:
            judged = kind.backend_class
            if kind.over_the_wire:
                facts = (kind.target.pool, kind.kind, True, kind.target.capabilities)
            else:
                try:
                    offer = find_offer(judged, kind.plugin, kind.kind)[1]
                except LookupError as error:
                    raise pytest.UsageError(f"{kind.__name__}: {error}") from error
                facts = (f"{judged.__module__}.{judged.__qualname__}", offer.kind, False, capabilities(judged))
            self._reports[kind] = Report(*facts, int(self.options.level), self.options.seed)
        return self._reports[kind]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Note the outcome of a test of the suite: a failure on its way to or from the test is one of the test."""
        outcome = yield
        case = _case(item)
        told: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's result of a hookwrapper
        if case and (told.failed or (call.when == "call" and told.passed)):
            self._note(case, item, "failed" if told.failed else "passed", call.duration, str(call.excinfo.value) if call.excinfo else "")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print what was proven."""
        for report in self._reports.values():
            terminalreporter.section("volgate conformance")
            for line in report.lines():
                terminalreporter.write_line(line)

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        if self.options.report and self._reports:
            facts = [report.as_dict() for report in self._reports.values()]
            text = json.dumps(facts[0] if len(facts) == 1 else facts, indent=1)
            Path(self.options.report).write_text(text + "\n", encoding="utf-8")


def _case(item: pytest.Item) -> Case | None:
    marker = item.get_closest_marker(_MARK)
    return marker.args[0] if marker else None


def _verb(item: pytest.Item) -> Any:
    """The mutation that a test of faults is about."""
    spec = getattr(item, "callspec", None)
    return spec.params.get("verb") if spec else None
