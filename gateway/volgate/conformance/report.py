"""What a run proved: for people and as JSON. What was not run is said, and is never among what passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from volgate.backend.facets import FACET_NAMES
from volgate.conformance.cases import Case, Level

__all__ = ["Outcome", "Report", "read"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test: the rule, perhaps with a variant of it, and `passed`, `failed`, or `not run` with the reason."""

    rule: str
    words: str
    level: int
    facets: tuple[str, ...]
    outcome: str
    seconds: float = 0.0
    detail: str = ""

    @classmethod
    def of(cls, case: Case, variant: str, outcome: str, seconds: float = 0.0, detail: str = "") -> Outcome:
        """Make one."""
        name = f"{case.name}[{variant}]" if variant else case.name
        facets = tuple(need.__name__ for need in case.needs if isinstance(need, type))  # one of several that suffice proves none of them
        return cls(name, case.words, int(case.level), facets, outcome, seconds, detail)


@dataclass(slots=True)
class Report:
    """The outcomes of one backend."""

    backend: str
    kind: str
    over_the_wire: bool
    capabilities: tuple[str, ...]
    level: int
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something passed."""
        told = Counter(outcome.outcome for outcome in self.outcomes)
        return bool(told["passed"]) and not told["failed"]

    def facets(self) -> dict[str, str]:
        """Each facet: `absent`, `failed`, `proven` up to the level of the run, or `not proven` if no test of it was run."""
        found = {}
        for name in FACET_NAMES:
            mine = {outcome.outcome for outcome in self.outcomes if name in outcome.facets}
            verdict = "failed" if "failed" in mine else "proven" if "passed" in mine else "not proven"
            found[name] = verdict if name in self.capabilities else "absent"
        return found

    def as_dict(self) -> dict[str, object]:
        """For programs."""
        told = Counter(outcome.outcome for outcome in self.outcomes)
        return {
            "backend": self.backend,
            "kind": self.kind,
            "over_the_wire": self.over_the_wire,
            "level": self.level,
            "seed": self.seed,
            "passed": self.passed,
            "counts": {name: told[name] for name in ("passed", "failed", "not run")},
            "facets": self.facets(),
            "cases": [asdict(outcome) for outcome in self.outcomes],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        how = "over the wire" if self.over_the_wire else "in process"
        yield f"{self.backend} (kind {self.kind}), {how}, to level {self.level} ({Level(self.level).name.lower()}), seed {self.seed}"
        for level in Level:
            mine = Counter(outcome.outcome for outcome in self.outcomes if outcome.level == level)
            if mine:
                told = ", ".join(f"{mine[name]} {name}" for name in ("passed", "failed", "not run") if mine[name])
                yield f"  level {int(level)}  {level.name.lower():12} {told}"
        for verdict in ("proven", "failed", "not proven", "absent"):
            if names := [name for name, found in self.facets().items() if found == verdict]:
                yield f"  {verdict + ':':12} {', '.join(names)}"
        yield from _reasons(outcome for outcome in self.outcomes if outcome.outcome == "not run")
        for outcome in self.outcomes:
            if outcome.outcome == "failed":
                yield f"  FAILED {outcome.rule}: {outcome.words}"
                yield from (f"         {line}" for line in outcome.detail.splitlines()[:6])
        yield "conforms" if self.passed else "does NOT conform"


def _reasons(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Why tests were not run, and how many for each reason."""
    for reason, count in sorted(Counter(outcome.detail for outcome in outcomes).items()):
        yield f"  not run:     {count} ({reason})"


def read(facts: Mapping[str, Any]) -> Report:
    """A report that was written."""
    outcomes = [Outcome(**{**case, "facets": tuple(case["facets"])}) for case in facts["cases"]]
    names = ("backend", "kind", "over_the_wire", "level", "seed")
    capabilities = tuple(name for name, verdict in facts["facets"].items() if verdict != "absent")
    return Report(**{name: facts[name] for name in names}, capabilities=capabilities, outcomes=outcomes)
