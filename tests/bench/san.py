"""The connector of iSCSI with multipath beside a script and beside os-brick's connector: the same LUN, in one guest of the kernel lab.

The guest is emulated where there is no KVM: a program costs 15 to 50 times what it does elsewhere there, which makes those who start more
of them look worse than they are. Therefore the number of programs stands beside the times.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.bench import Bench
from tests.bench.measure import Pairs, Row
from tests.labs.kernel.machine import ROOT, Machine

OS_BRICK = "os-brick==7.1.1"
PEERS = ROOT / "build/bench/os-brick"
SECONDS = 900.0
BESIDE = ("script", "os-brick")


def _peer() -> Path:
    """Have os-brick in a folder of its own, seen by nothing else."""
    if not (PEERS / "os_brick").exists():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(PEERS), OS_BRICK]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    return PEERS


def _measured(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run it in a guest."""
    words = f"cd {ROOT} && PYTHONPATH={ROOT}:{_peer()} {sys.executable} -m tests.bench.san_inside {rounds} >/share/found 2>/share/said"
    with Machine("bench") as machine:
        status, _ = machine.sh(words, SECONDS)
        found, said = ((machine.share / name).read_text() for name in ("found", "said"))
    if status:
        raise RuntimeError(f"the guest's part ended with {status}: {said[-3000:]}")
    return dict(json.loads(found))


def san(bench: Bench) -> list[Row]:
    """Connect and disconnect, beside each of the others."""
    found = _measured(bench.scaled(6))
    rows: list[Row] = []
    for act in ("connect", "disconnect"):
        rows += [Pairs(found["ours"][act], found[other][act]).middle(f"SAN {act} beside {other}") for other in BESIDE]
    for other in BESIDE:
        ours, theirs = found["ours"]["programs"][1:], found[other]["programs"][1:]
        mean, their_mean = sum(ours) / len(ours), sum(theirs) / len(theirs)
        rows.append(Row(f"SAN programs beside {other}", mean, their_mean, mean / their_mean))
    return rows


GROUPS: dict[str, Any] = {"san": san}
