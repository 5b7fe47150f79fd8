"""Run the groups of rows, print them beside their targets, write them as JSON.

Exit status: 0; 1 if a target is missed and --strict was given; 2 if a row is missing or unknown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import targets
from tests.bench.bench import Bench
from tests.bench.measure import Row

RESULTS = Path(__file__).resolve().parents[2] / "build/bench/results.json"
GROUPS = {
    "fsync": "footprint",
    "start": "footprint",
    "memory": "footprint",
    "create": "mutations",
    "delete": "mutations",
    "expand": "mutations",
    "read": "reads",
    "image": "images",
    "worker": "workers",
    "isolation": "workers",
    "attach": "attachments",
    "hosts": "hosts",
    "controllers": "controllers",
    "ceph": "ceph",
    "san": "san",
}
"""Group to module: each is imported when it runs, for not every machine has what each needs."""


def measure(group: str, bench: Bench) -> list[Row]:
    """Run one group."""
    function: Callable[[Bench], list[Row]] = importlib.import_module(f"tests.bench.{GROUPS[group]}").GROUPS[group]
    return function(bench)


def run(groups: list[str], *, scale: float, committed: list[targets.Target]) -> list[dict[str, object]]:
    """Run groups and judge their rows. Raises WrongRows."""
    rows: list[Row] = []
    with Bench(scale=scale) as bench:
        for group in groups:
            began = time.monotonic()
            rows += measure(group, bench)
            print(f"{group}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return targets.judge([target for target in committed if target.group in groups], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure what the gateway costs beside native calls.")
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, with commas between: %(default)s")
    parser.add_argument("--strict", action="store_true", help="fail if a row misses its target")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual rounds, volumes and bytes")
    parser.add_argument("--targets", type=Path, default=targets.FILE, help="rows and targets")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go as JSON")
    options = parser.parse_args(arguments)
    groups = options.only.split(",")
    if unknown := set(groups) - GROUPS.keys():
        parser.error(f"unknown groups: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    try:
        results = run(groups, scale=options.scale, committed=targets.read(options.targets))
    except targets.WrongRows as error:
        print(f"rows: {error}", file=sys.stderr)
        return 2
    targets.write(results, options.output)
    print(f"{targets.table(results)}\n\n{targets.peers()}\n")
    missed = [str(found["name"]) for found in results if not found["met"]]
    print(f"load average {' '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} processors")
    print(f"{len(results)} rows, {len(missed)} missed{': ' + ', '.join(missed) if missed else ''}; {options.output}")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
