"""Trials of mutants, and what they come to. `python -m tests.mutation.score [FILE...]` tries all of some files, and tells each survivor."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.server import PACKAGE, ROOT

__all__ = ["Score", "Trials", "all_mutants"]

_LONG = 10.0  # seconds beyond what the tests take: a mutant that hangs is then dead


def all_mutants(*names: str) -> list[Mutant]:
    """Those of the directory plugin, or of some of its files."""
    return [mutant for file in sorted(PACKAGE.glob("*.py")) if not names or file.name in names for mutant in mutants_of(file)]


@dataclass
class Score:
    """How many died, by operator, and who lives."""

    tried: Counter[str] = field(default_factory=Counter)
    died: Counter[str] = field(default_factory=Counter)
    survivors: list[Mutant] = field(default_factory=list)

    def add(self, mutant: Mutant, killer: str) -> None:
        """Count one; `killer` is what killed it, "" if nothing did."""
        self.tried[mutant.family] += 1
        if killer:
            self.died[mutant.family] += 1
        else:
            self.survivors.append(mutant)

    @property
    def share(self) -> float:
        """The part that died."""
        return self.died.total() / self.tried.total()

    def told(self) -> str:
        """The score, then a line for each file with survivors."""
        families = ", ".join(f"{name} {self.died[name]}/{count}" for name, count in self.tried.most_common())
        lines = [f"{self.died.total()} of {self.tried.total()} mutants died, {self.share:.1%}: {families}"]
        for name in sorted({mutant.file.name for mutant in self.survivors}):
            alive = sorted((one.line, one.change) for one in self.survivors if one.file.name == name)
            lines.append(f"alive in {name}: " + ", ".join(f"{line} {change}" for line, change in alive))
        return "\n".join(lines)


class Trials:
    """A server of trials, and which of its tests comes by which line."""

    def __init__(self) -> None:
        """Start it, and run every test on the code as it is. Raises AssertionError if one fails."""
        self._folder = tempfile.TemporaryDirectory(prefix="volgate-mutants-")
        argv = [sys.executable, "-m", "tests.mutation.server", self._folder.name]
        self._server = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self._ask(None, "", None, 600)["answer"]
        assert answer and not answer["status"], answer and answer["output"]
        self.seconds: dict[str, float] = answer["seconds"]
        self._reached: dict[tuple[str, int], set[str]] = {}
        for test, places in answer["lines"].items():
            for name, line in places:
                self._reached.setdefault((name, line), set()).add(test)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._folder, self._server:  # its input ends, and so does it
            pass

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that may kill it, quickest first; all, if it changes what is done when the module is imported."""
        lines = range(mutant.span.first, mutant.span.last + 1)
        found = (
            set().union(*(self._reached.get((mutant.file.name, line), ()) for line in lines)) if mutant.span.called else set(self.seconds)
        )
        return sorted(found, key=lambda name: self.seconds[name])

    def judge(self, file: str, source: str, tests: list[str], patience: float = _LONG) -> str:
        """Run tests with another source of one file: what failed, "" if nothing did; `patience` is in seconds."""
        told = self._ask(file, source, tests, patience + 3 * sum(self.seconds[name] for name in tests))
        answer = told["answer"]
        if told["long"] or answer is None:
            return "time" if told["long"] else "it took its process along"
        # the last is the suite's answer to a plugin that offers nothing
        assert answer["status"] in (0, 1, 2, pytest.ExitCode.USAGE_ERROR), answer["output"]
        return answer["failed"] or ("import" if answer["status"] else "")

    def tried(self, mutants: Iterable[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yield each that is one, and what killed it, "" if it survives."""
        for mutant in mutants:
            source = mutant.source()
            if source is not None:
                tests = self.tests_of(mutant)
                yield mutant, self.judge(str(mutant.file), source, tests) if tests else ""

    def score(self, mutants: Iterable[Mutant], limit: int = 0) -> Score:
        """Try the mutants; so many of them, if there is a limit."""
        found = Score()
        for mutant, killer in itertools.islice(self.tried(mutants), limit or None):
            found.add(mutant, killer)
        return found

    def _ask(self, file: str | None, source: str, tests: list[str] | None, deadline: float) -> dict[str, Any]:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps({"file": file, "source": source, "tests": tests, "deadline": deadline}) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, "the server of trials ended"
        return json.loads(line)


def main() -> None:
    """Try all of some files, and tell what lives, and what hung."""
    began, found = time.monotonic(), Score()
    with Trials() as trials:
        for mutant, killer in trials.tried(all_mutants(*sys.argv[1:])):
            found.add(mutant, killer)
            if killer in ("", "time"):
                print("hangs" if killer else "lives", mutant, "" if trials.tests_of(mutant) else "(no test comes by)", flush=True)
    print(f"{found.told()}\nin {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
