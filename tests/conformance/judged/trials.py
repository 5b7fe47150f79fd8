"""Run the judge on bad backends, in a process of its own, and tell which rules each of them failed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from volgate.conformance import Conformance
from volgate.conformance.cases import MARK, Case, Level

__all__ = ["MODEL", "MODULES", "Rule", "bad_of", "failed_rules", "of_level_4", "rules"]

MODEL = "verbs-in-any-order-come-to-what-a-model-says"
_SLOW = {
    "a-slow-change-holds-nobody-up",
    "a-killed-extract-leaves-nothing-beside-its-file",
    "a-call-that-died-holds-no-volume",
}
MODULES = ("bad_contract", "bad_snapshots", "bad_groups", "bad_data", "bad_layers", "bad_extracts", "bad_faults")
_ROOT = Path(__file__).parents[3]
_JUDGED = "tests/conformance/judged/all_bad.py"


class Rule(NamedTuple):
    """A rule, its test, and the verbs of which that has a variant each; None: it has none."""

    case: Case
    test: str
    verbs: list[str] | None


def bad_of(module: str) -> list[Any]:
    """The bad backends of a module."""
    return list(importlib.import_module(f"tests.conformance.judged.{module}").BAD)


def rules() -> dict[str, Rule]:
    """Every rule by its name."""
    found = {}
    for name in dir(Conformance):
        marks = {mark.name: mark for mark in getattr(getattr(Conformance, name), "pytestmark", ())}
        if MARK in marks:
            verbs = [verb.name for verb in marks["parametrize"].args[1]] if "parametrize" in marks else None
            case = marks[MARK].args[0]
            found[case.name] = Rule(case, name, verbs)
    return found


def failed_rules(module: str, names: Sequence[str], folder: Path, *words: str, tests: Sequence[str] = ()) -> dict[str, set[str]]:
    """The rules that each of some bad backends failed; `tests` are those to run, all if none is named."""
    told = folder / "report.json"
    chosen = [f"{_JUDGED}::{test}" for test in tests] or [_JUDGED]
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb", "short", "--basetemp", str(folder / "judged"), *chosen]
    argv += ["--conformance-report", str(told), *words]
    environment = {**os.environ, "VOLGATE_BAD": f"{module}:{','.join(names)}"}
    done = subprocess.run(argv, check=False, cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1) and told.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    facts = json.loads(told.read_text(encoding="utf-8"))
    found = {}
    for report in facts if isinstance(facts, list) else [facts]:
        failed = [case for case in report["cases"] if case["outcome"] == "failed"]
        found[report["backend"].rpartition(".")[2]] = {case["rule"].partition("[")[0] for case in failed}
        for case in failed:
            print(report["backend"], case["rule"], case["detail"][:300])
    return found


def of_level_4(backend: Any, *, every: bool) -> list[str]:
    """What is run of a backend that breaks a rule of level 4: that level with its own verb, or every test of the suite.

    Without `every`, what takes seconds by its nature is run of the backend alone that it is about.
    """
    of = f"Test{backend.__name__}"
    if every:
        return [of]
    found = []
    for rule in rules().values():
        if rule.case.level is not Level.FAULTS or (rule.case.name in _SLOW and backend.rule != rule.case.name):
            continue
        if rule.verbs is None:
            found.append(f"{of}::{rule.test}")
        elif backend.verb in rule.verbs:
            found.append(f"{of}::{rule.test}[{backend.verb}]")
    return found
