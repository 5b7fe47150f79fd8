"""The guide's table of roles and methods is the table that the gateway decides by."""

import re
from pathlib import Path

from volgate.edge.identity import Role
from volgate.edge.policy import POLICY

GUIDE = (Path(__file__).parents[2] / "docs/operator-guide.md").read_text(encoding="utf-8")


def test_the_guide_says_who_may_call_what():
    section = GUIDE.partition("## TLS and roles\n")[2].partition("\n## ")[0]
    header, *rows = re.findall(r"^\| (`?[A-Za-z0-9./]+`?) ((?:\| (?:yes |[a-z]+ )?)+)\|$", section, re.MULTILINE)
    roles = [Role(word.strip()) for word in header[1].strip("|").split("|")]
    assert set(roles) == set(Role)
    shown = {}
    for name, cells in rows:
        method = name.strip("`")
        path = f"/{method}" if method.startswith("grpc.") else f"/volgate.v1.{method}"
        shown[path] = {role for role, cell in zip(roles, cells.strip().removeprefix("|").split("|"), strict=True) if cell.strip() == "yes"}
    assert shown == {method: set(rule.roles) for method, rule in POLICY.items()}
