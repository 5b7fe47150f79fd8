"""The committed rows and targets, how a result is judged by them, and the table and file that come out."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measure import Row

FILE = Path(__file__).with_name("targets.toml")
PEERS = Path(__file__).with_name("peers.toml")
RULES = {
    "difference": "at most reference + {limit:g} {unit}",
    "ratio": "at most {limit:g} x reference",
    "absolute": "at most {limit:g} {unit}",
    "context": "none (context)",
}


class WrongRows(Exception):
    """The run and the committed file disagree on which rows there are."""


@dataclass(frozen=True)
class Target:
    """One row as committed. `rule` says how `limit` is meant; see RULES."""

    name: str
    group: str
    unit: str
    rule: str
    limit: float = 0.0
    reference: str = ""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise WrongRows(f"{self.name}: rule {self.rule!r} is none of {', '.join(RULES)}")

    @property
    def text(self) -> str:
        return RULES[self.rule].format(limit=self.limit, unit=self.unit)

    def met(self, row: Row) -> bool:
        """Say whether a result keeps the target. A row without the reference that its rule needs does not."""
        if self.rule == "difference":
            return row.reference is not None and row.ours - row.reference <= self.limit
        if self.rule == "ratio":
            return row.ratio is not None and row.ratio <= self.limit
        return self.rule == "context" or row.ours <= self.limit


def read(path: Path = FILE) -> list[Target]:
    """Read the file. Raises WrongRows for a name that stands there twice."""
    found = [Target(**table) for table in tomllib.loads(path.read_text(encoding="utf-8"))["row"]]
    names = [target.name for target in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise WrongRows(f"{path.name} has {', '.join(sorted(twice))} twice")
    return found


def judge(targets: Iterable[Target], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Put results beside their targets, in the file's order. Raises WrongRows for a missing, an unknown and a double row."""
    rows = list(rows)
    found = {row.name: row for row in rows}
    wanted = {target.name: target for target in targets}
    problems = [f"{name}: measured, but {FILE.name} does not have it" for name in found.keys() - wanted.keys()]
    problems += [f"{name}: in {FILE.name}, but not measured" for name in wanted.keys() - found.keys()]
    if len(rows) != len(found):
        problems.append("a row was measured twice")
    if problems:
        raise WrongRows("; ".join(sorted(problems)))
    return [_result(target, found[target.name]) for target in wanted.values()]


def _result(target: Target, row: Row) -> dict[str, Any]:
    return {
        "name": target.name,
        "unit": target.unit,
        "ours": _rounded(row.ours),
        "reference": _rounded(row.reference),
        "reference_name": target.reference,
        "ratio": _rounded(row.ratio),
        "target": target.text,
        "met": target.met(row),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def table(results: list[dict[str, Any]]) -> str:
    """Render results for people."""
    lines = [("row", "ours", "reference", "ratio", "target", "", "reference is")]
    for found in results:
        unit = found["unit"]
        shown = [f"{found[key]:.2f} {unit}" if found[key] is not None else "-" for key in ("ours", "reference")]
        ratio = f"{found['ratio']:.2f}" if found["ratio"] is not None else "-"
        verdict = "" if found["target"] == RULES["context"] else "met" if found["met"] else "MISSED"
        lines.append((found["name"], *shown, ratio, found["target"], verdict, found["reference_name"]))
    return _aligned(lines, left={0, 4, 5, 6})


def peers() -> str:
    """Render what others published."""
    listed = tomllib.loads(PEERS.read_text(encoding="utf-8"))["peer"]
    return _aligned([("peers, as published", "", ""), *((one["what"], one["figure"], one["source"]) for one in listed)], left={0, 1, 2})


def _aligned(lines: Sequence[tuple[str, ...]], left: set[int]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write(results: list[dict[str, Any]], path: Path) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
