"""The tracked files, and the syntax trees of what is shipped."""

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ROOT", "Function", "functions", "imports", "shipped", "tracked"]

ROOT = Path(__file__).parents[2]
_TOPS = ("gateway/", "plugins/", "clients/python/")
_GENERATED = "gateway/volgate/v1/"


@dataclass(frozen=True)
class Function:
    """A function or method and its length in lines, docstring included."""

    place: str
    lines: int


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that git tracks and the work tree still has."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


@cache
def shipped() -> dict[Path, ast.Module]:
    """The modules of the distribution, but for the generated stubs."""
    names = {path: str(path.relative_to(ROOT)) for path in tracked() if path.suffix == ".py"}
    return {path: ast.parse(path.read_text()) for path, name in names.items() if name.startswith(_TOPS) and not name.startswith(_GENERATED)}


def functions() -> list[Function]:
    """Every function of what is shipped, the longest first."""
    found = [
        Function(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for path, tree in shipped().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda function: -function.lines)


def imports(tree: ast.Module) -> set[str]:
    """The dotted names of every module that a module imports, at the top or inside."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found
