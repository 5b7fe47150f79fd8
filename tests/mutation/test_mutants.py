"""The directory plugin is changed in small ways, one at a time: a test has to fail at most of the changes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.mutation.mutants import drawn, mutants_of
from tests.mutation.score import Trials, all_mutants
from tests.mutation.server import PACKAGE
from tests.soaking import SOAK

LEAST = 0.8
SAMPLE = 25
# Fixed: the same code has the same sample, which then passes or fails for good, and an edit changes no more than its own lines' part.
SEED = int(os.environ.get("VOLGATE_SEED", "0")) or 1

pytestmark = pytest.mark.timeout(3 * 3600 if SOAK else 600)


@pytest.fixture(scope="module")
def trials():
    with Trials() as running:
        yield running


def test_most_mutants_die(trials):
    mutants = drawn(all_mutants(), SEED)
    if not SOAK:
        print(f"seed {SEED} (VOLGATE_SEED={SEED} repeats this sample)")
    began = time.monotonic()
    found = trials.score(mutants, 0 if SOAK else SAMPLE)
    print(found.told(), f"in {time.monotonic() - began:.0f} s")
    assert found.tried.total() >= (1000 if SOAK else SAMPLE)
    assert found.share >= LEAST


def test_the_code_as_it_is_survives(trials):
    file = PACKAGE / "store.py"
    assert trials.judge(str(file), file.read_text(), list(trials.seconds)) == ""


def test_a_mutant_reaches_nothing_outside_its_box_and_leaves_no_process(trials, tmp_path):
    file, outside = PACKAGE / "settings.py", tmp_path / "outside"
    outside.write_text("here")
    wild = f"""
import contextlib, os, subprocess, time
for attempt in (lambda: os.unlink({str(outside)!r}), lambda: os.unlink({str(file)!r}), lambda: open({str(outside)!r}, "w")):
    with contextlib.suppress(OSError):
        attempt()
subprocess.Popen(["sleep", "98765"], start_new_session=True)
time.sleep(98765)
"""
    before = file.read_text()
    assert trials.judge(str(file), before + wild, [min(trials.seconds)], patience=2) == "time"
    assert outside.read_text() == "here" and file.read_text() == before
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _words(path) == [b"sleep", b"98765"]]
    assert not running


def test_a_mutant_is_killed_by_the_test_that_it_fails(trials):
    file = PACKAGE / "store.py"
    broken = file.read_text().replace("-(-size // GRAIN) * GRAIN", "size")
    assert trials.judge(str(file), broken, sorted(trials.seconds)) in trials.seconds
    assert trials.judge(str(file), "import nowhere", [min(trials.seconds)]) == "import"


def test_what_nobody_evaluates_is_no_mutant(tmp_path):
    file = tmp_path / "code.py"
    file.write_text(
        "from __future__ import annotations\n"
        "def grown(size: int | None, *, by: int | str = 2) -> int | None:\n"
        "    found: int | str = size * by\n"
        "    if found is None:\n"
        '        raise ValueError(f"{size + 1} is wrong")\n'
        "    return found\n"
    )
    made = [(mutant, source) for mutant in mutants_of(file) if (source := mutant.source())]
    assert {mutant.line for mutant, _ in made} == {2, 3, 4}
    assert {mutant.text for mutant, _ in made if mutant.line == 2 and mutant.family != "NumberReplacer"} == set()
    assert [mutant.span.called for mutant, _ in made if mutant.line > 2] == [True] * sum(mutant.line > 2 for mutant, _ in made)
    assert drawn([mutant for mutant, _ in made], 1) == drawn([mutant for mutant, _ in made], 1) != drawn([mutant for mutant, _ in made], 2)


def _words(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
