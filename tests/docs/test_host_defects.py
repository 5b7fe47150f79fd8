"""The page of host defects names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| .* \|$", (ROOT / "docs/host-defects.md").read_text(), re.MULTILINE)[1:]


def test_each_of_twenty_is_held_off_by_a_test_or_said_to_be_open():
    assert len(ROWS) == 20
    named = [re.search(r"`(tests/\S+)::(test_\w+)` \|$", row) for row in ROWS]
    assert all(found or re.search(r"\| open: \w+ \|$", row) for found, row in zip(named, ROWS, strict=True))
    for found in filter(None, named):
        tree = ast.parse((ROOT / found[1]).read_text())
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, found[0]
