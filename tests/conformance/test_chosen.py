"""Which rules are looked at: those that mean something for the facets of a backend."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import soak
from volgate.conformance import Conformance

ROOT = Path(__file__).parents[2]


def test_every_backend_before_the_judge_is_among_what_is_run_with_full_counts():
    modules = {path.relative_to(ROOT) for path in Path(__file__).parent.glob("test_*.py")}
    judging = set()
    for path in modules:
        kinds = [kind for kind in vars(importlib.import_module(".".join(path.with_suffix("").parts))).values() if isinstance(kind, type)]
        if any(issubclass(kind, Conformance) and kind.__name__.startswith("Test") for kind in kinds):
            judging.add(str(path))
    assert "tests/conformance/test_ceph.py" in judging and judging <= set(soak.modules())


def test_snapshots_that_cannot_be_read_are_judged_by_what_is_told_of_them(tmp_path):
    told = tmp_path / "report.json"
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance/judged/unreadable.py"]
    argv += ["--conformance-level", "2", "--conformance-report", str(told), "--basetemp", str(tmp_path / "judged")]
    done = subprocess.run(argv, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    report = json.loads(told.read_text(encoding="utf-8"))
    cases = {case["rule"]: case for case in report["cases"]}
    frozen = cases["a-snapshot-is-frozen"]
    assert (frozen["outcome"], frozen["detail"]) == ("not run", "the backend has no DataPath or Clones")
    assert cases["a-snapshot-keeps-its-size"]["outcome"] == cases["a-revert-sets-the-size-back"]["outcome"] == "passed"
    assert report["passed"] and report["facets"]["Reverts"] == "proven"


def test_a_class_that_no_plugin_offers_is_told_as_such(tmp_path):
    text = "from tests.conformance.judged.good import Good\nfrom tests.conformance.judged.judge import Judge\n\n\n"
    text += "class Unmarked(Good):\n    pass\n\n\ndef volgate_backends():\n    return []\n\n\nclass TestIt(Judge):\n    backend_class = Unmarked\n"
    (tmp_path / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    told = ran.stdout + ran.stderr
    assert (
        ran.returncode == pytest.ExitCode.USAGE_ERROR and "TestIt: neither test_it nor a package around it" in told and "@hookimpl" in told
    )
    assert "Traceback" not in told
