"""How often a long test repeats, and from which seed it draws."""

import os
import random
import time

__all__ = ["SOAK", "count", "draw"]

SOAK = os.environ.get("VOLGATE_SOAK", "") == "1"


def count(short: int, *, soak: int) -> int:
    """Repetitions in `make test`, and in `make soak`."""
    return soak if SOAK else short


def draw() -> random.Random:
    """Return a generator whose seed is printed; VOLGATE_SEED repeats a run."""
    seed = int(os.environ.get("VOLGATE_SEED", "0")) or time.time_ns() % 1_000_000_007
    print(f"seed {seed} (VOLGATE_SEED={seed} repeats this run)")
    return random.Random(seed)
