"""The reasons of failures: those that the code uses, read from its syntax trees, and those that error.proto lists."""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from volgate import errors

__all__ = ["ADVICE", "Listed", "listed", "used"]

ROOT = Path(__file__).parents[2]
ADVICE = ("never", "same call", "after the cause is gone")
_CLASSES = {
    name: kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type) and issubclass(kind, errors.VolgateError)
}
_WORD = re.compile(r"[A-Z][A-Z0-9_]+")
_ENTRY = re.compile(r"((?:\s*//[^\n]*\n)+)\s*REASON_(\w+) = \d+;")
_TAIL = re.compile(r"\((?P<statuses>[A-Z_]+(?: or [A-Z_]+)*); retry: (?P<retry>[a-z ]+)\)\.$")


@dataclass(frozen=True)
class Listed:
    """One entry of error.proto."""

    reason: str
    comment: str
    statuses: frozenset[str]
    retry: str


def listed() -> dict[str, Listed]:
    """Every reason of error.proto by name; one without statuses and advice has them empty."""
    text = (ROOT / "proto/volgate/v1/error.proto").read_text()
    found = {}
    for lines, reason in _ENTRY.findall(text):
        comment = " ".join(line.strip().removeprefix("//").strip() for line in lines.strip().splitlines())
        tail = _TAIL.search(comment)
        statuses = frozenset(tail["statuses"].split(" or ")) if tail else frozenset[str]()
        found[reason] = Listed(reason, comment, statuses, tail["retry"] if tail else "")
    return found


def used() -> dict[str, dict[str, set[str]]]:
    """Every reason that gateway/ and plugins/ can answer with: reason -> status -> places. A status of "" is not known from the tree."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in sorted([*(ROOT / "gateway/volgate").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]):
        if "v1" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for reason, kind in _reasons(node):
                found[reason][kind.status if kind else ""].add(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
    return {reason: dict(statuses) for reason, statuses in found.items()}


def _reasons(node: ast.AST) -> list[tuple[str, type[errors.VolgateError] | None]]:
    """A raise with reason=, a class with default_reason, a row of a table that holds a class and then its reason."""
    if isinstance(node, ast.Call):
        return [(word, _kind(node.func)) for key in node.keywords if key.arg == "reason" and (word := _word(key.value))]
    if isinstance(node, ast.ClassDef):
        body = [line for line in node.body if isinstance(line, ast.Assign | ast.AnnAssign)]
        return [(word, _CLASSES.get(node.name)) for line in body if _is_default(line) and (word := _word(line.value))]
    if isinstance(node, ast.Tuple):
        pairs = zip(node.elts, node.elts[1:], strict=False)
        return [(word, kind) for first, second in pairs if (kind := _kind(first)) and (word := _word(second))]
    return []


def _kind(node: ast.expr) -> type[errors.VolgateError] | None:
    return _CLASSES.get(node.id) if isinstance(node, ast.Name) else None


def _word(node: ast.expr | None) -> str:
    good = isinstance(node, ast.Constant) and isinstance(node.value, str) and _WORD.fullmatch(node.value)
    return str(node.value) if good else ""


def _is_default(line: ast.Assign | ast.AnnAssign) -> bool:
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    return any(isinstance(target, ast.Name) and target.id == "default_reason" for target in targets)
