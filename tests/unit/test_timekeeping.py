"""A run of everything tells failures when they happen, and ends while it can be told."""

import os
import subprocess
import sys
from pathlib import Path

SLOW = """
import time, pytest

@pytest.mark.parametrize("number", range(40))
def test_it(number):
    time.sleep(0.3)
    assert number != 0, "the first one"
"""


def test_a_failure_is_told_at_once_and_a_run_that_takes_too_long_ends_as_a_failed_one(tmp_path):
    (tmp_path / "test_it.py").write_text(SLOW)
    argv = [sys.executable, "-m", "pytest", "-p", "tests.timekeeping", "-p", "no:cacheprovider", "-c", "/dev/null", "-n", "2"]
    times = tmp_path / "times.tsv"
    kept = {name: value for name, value in os.environ.items() if name != "VOLGATE_TEST_END"}  # that of the run that this one is part of
    environment = {**kept, "VOLGATE_TEST_MINUTES": "0.03", "VOLGATE_TEST_TIMES": str(times)}
    command = [*argv, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=False, capture_output=True, text=True, timeout=60)
    told, _, end = done.stdout.partition("= FAILURES =")
    # of the first one: whatever the machine is busy with, the time is over after it
    assert "call of test_it.py::test_it[0] failed:" in told and "AssertionError: the first one" in told
    noted = [line.split("\t") for line in times.read_text().splitlines()]
    assert [outcome for _, _, _, when, outcome, name in noted if (when, name) == ("call", "test_it.py::test_it[0]")] == ["failed"]
    assert "the time is over" in end and done.returncode == 2
