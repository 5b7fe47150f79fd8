"""The whole machine loses its power in the middle of calls, again and again: what was answered is so, and nothing else stays."""

from __future__ import annotations

import sys
import time

import pytest

from tests.labs.kernel.machine import ROOT, Machine
from tests.soaking import SOAK, count, draw

CUTS = count(3, soak=50)
LIFE_SECONDS = 700.0  # a start in an emulated machine, with the check
LONGEST = 12.0  # seconds of calls before a cut


def begin(machine: Machine, seed: int, *more: str) -> None:
    """Start a life of the gateway and its callers in the guest."""
    (machine.share / "said").unlink(missing_ok=True)
    life = f"cd {ROOT}; exec setsid {sys.executable} -m tests.kernel.cut_site {seed} {' '.join(more)}"
    machine.run(f"({life}) >/share/said 2>&1 </dev/null &")


def heard(machine: Machine, word: str) -> None:
    """Wait until that life says a word; its end without it, or silence, is a failure, told with what it said."""
    deadline = time.monotonic() + LIFE_SECONDS
    while word not in (text := said(machine)):
        assert "Traceback" not in text and time.monotonic() < deadline, f"it never said {word!r}: {said(machine, ended=True)}"
        time.sleep(0.2)
    print(f"{word} after {LIFE_SECONDS - (deadline - time.monotonic()):.0f} s")


def said(machine: Machine, *, ended: bool = False) -> str:
    """What that life said; `ended`: all of it."""
    if ended:
        time.sleep(5)
    path = machine.share / "said"
    return path.read_text(errors="replace") if path.exists() else ""


@pytest.mark.drawn(turns=5)
@pytest.mark.timeout(36_000 if SOAK else 1800)
def test_a_power_cut_in_the_middle_of_calls_leaves_the_truth():
    dice = draw()
    with Machine("cut") as machine:
        machine.add_disk("site", 192 << 20)
        for _ in range(CUTS):
            begin(machine, dice.randrange(1 << 30))
            heard(machine, "checked")
            time.sleep(dice.uniform(0.5, LONGEST))
            assert "Traceback" not in said(machine), said(machine, ended=True)
            machine.power_cut(dice)
        begin(machine, 0, "last")
        heard(machine, "cleared")
