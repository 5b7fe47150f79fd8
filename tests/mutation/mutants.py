"""The mutants of a source: every change that an operator of Cosmic Ray makes of it, without those that change nothing.

What is left out, and why, is a rule below; there is no list of survivors.
"""

from __future__ import annotations

import ast
import hashlib
import marshal
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

__all__ = ["Mutant", "Span", "drawn", "mutants_of"]

Position = tuple[int, int]
# What is compared by identity here are None and members of enumerations: `==` says the same of them, and they have no order that means
# anything, so that a comparison of their values is the identity of one of them under another name.
_SAME = re.compile(r"ReplaceComparisonOperator_(Is_(Eq|Lt|LtE|Gt|GtE)|IsNot_(NotEq|Lt|LtE|Gt|GtE))")


@dataclass(frozen=True, slots=True)
class Span:
    """The lines of the statement that is changed (of its head, if it has a body), and whether they run when a function is called."""

    first: int
    last: int
    called: bool


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file: the `occurrence`-th place that its operator finds."""

    file: Path
    operator: str
    occurrence: int
    line: int
    span: Span
    text: str

    @property
    def family(self) -> str:
        """The operator without what it replaces by what."""
        return self.change.partition("_")[0]

    @property
    def change(self) -> str:
        """The operator in its own words."""
        return self.operator.rpartition("/")[2]

    def source(self) -> str | None:
        """The whole file with the change; None if that is no Python, or what the compiler makes of it is what it was."""
        original = self.file.read_text(encoding="utf-8")
        changed = mutate_code(original, cosmic_ray.plugins.get_operator(self.operator)(), self.occurrence)
        try:
            return changed if _compiled(changed) != _compiled(original) else None
        except SyntaxError:
            return None

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line} {self.change} #{self.occurrence}: {self.text}"


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Yield them in order of operator and place."""
    source = file.read_text(encoding="utf-8")
    nodes, lines = list(ast_nodes(get_ast(source))), source.splitlines()
    unjudged, spans = list(_unjudged(nodes)), list(_spans(ast.parse(source)))
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        if kind.arguments() or _SAME.fullmatch(name.rpartition("/")[2]):  # arguments would be names that the code should be changed to
            continue
        places = [place for node in nodes for place in kind().mutation_positions(node)]
        for occurrence, (start, end) in enumerate(places):
            if not any(first <= start and end <= last for first, last in unjudged):
                yield Mutant(file, name, occurrence, start[0], _span(spans, start[0]), lines[start[0] - 1].strip())


def drawn(mutants: list[Mutant], seed: int) -> list[Mutant]:
    """Shuffle them. Each has its lot by what it changes, so that a change of the code leaves most of the order as it is."""
    seen: dict[tuple[str, str, str], int] = {}
    lots = []
    for mutant in mutants:
        what = (mutant.file.name, mutant.operator, mutant.text)
        seen[what] = seen.get(what, 0) + 1
        lots.append((hashlib.sha256(repr((seed, *what, seen[what])).encode()).digest(), mutant))
    return [mutant for _, mutant in sorted(lots, key=lambda pair: pair[0])]


def _unjudged(nodes: list) -> Iterator[tuple[Position, Position]]:
    """Where a change shows nowhere: annotations, which nobody evaluates, what a message interpolates, a star that is no operation."""
    for node in nodes:
        if node.type == "operator" and node.parent.type == "parameters":
            yield node.start_pos, node.end_pos
        annotation = node.children[1] if node.type == "annassign" else getattr(node, "annotation", None)
        if annotation is not None:
            yield annotation.start_pos, annotation.end_pos
        if node.type == "raise_stmt":
            for inner in ast_nodes(node):
                if inner.type == "fstring":
                    yield inner.start_pos, inner.end_pos


def _compiled(source: str) -> bytes:
    """The byte code, without the places that it came from."""
    with warnings.catch_warnings(action="ignore"):  # that `is` has a literal beside it is no matter here
        return marshal.dumps(_bare(compile(source, "", "exec", dont_inherit=True)))


def _bare(code: CodeType) -> CodeType:
    constants = tuple(_bare(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    return code.replace(co_consts=constants, co_linetable=b"", co_firstlineno=1)


def _spans(tree: ast.AST, *, called: bool = False) -> Iterator[Span]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            body = getattr(child, "body", None)
            last = max(child.lineno, body[0].lineno - 1) if body else child.end_lineno or child.lineno
            yield Span(child.lineno, last, called and not isinstance(child, ast.FunctionDef))
        yield from _spans(child, called=called or isinstance(child, ast.FunctionDef))


def _span(spans: list[Span], line: int) -> Span:
    around = [span for span in spans if span.first <= line <= span.last]
    return min(around, key=lambda span: span.last - span.first, default=Span(line, line, called=False))
