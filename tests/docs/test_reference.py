"""The tables of the operator's guide are the code's: every key with its default, every metric with its labels."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.architecture.sources import shipped
from volgate import settings
from volgate.edge import transfer, validate
from volgate.edge.server import EdgeServer
from volgate.errors import InvalidRequest
from volgate_plugins.ceph_rbd import CephSettings
from volgate_plugins.directory import DirectorySettings
from volgate_plugins.directory.pool import MARKER
from volgate_plugins.directory.store import GRAIN, MANIFEST
from volgate_plugins.iscsi import IscsiSettings
from volgate_plugins.lvm import LvmSettings

GUIDE = (Path(__file__).parents[2] / "docs/operator-guide.md").read_text(encoding="utf-8")
SECTIONS = {
    "[server]": settings.Server,
    "[controller]": settings.Controller,
    "[tls]": settings.Tls,
    "[database]": settings.Database,
    "[telemetry]": settings.Telemetry,
    "[limits]": settings.Limits,
    "[imports]": settings.Imports,
    "[exports]": settings.Exports,
    "[plugins]": settings.Plugins,
    "[hosts.NAME]": settings.Host,
    '[pools.NAME], kind "directory"': DirectorySettings,
    '[pools.NAME], kind "ceph-rbd"': CephSettings,
    '[pools.NAME], kind "lvm"': LvmSettings,
    '[pools.NAME], kind "iscsi"': IscsiSettings,
}


def table(heading: str) -> list[tuple[str, str]]:
    """The first two columns of the table below a heading."""
    section = re.split(r"^#+ ", GUIDE.partition(f"### {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([a-z_]+)` \| (.*?) \|", section, re.MULTILINE)


def spelt(value: Any) -> str:
    """A default as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value)) if isinstance(value, tuple) else str(value)


def fields(kind: type[Any]) -> list[tuple[str, Any]]:
    """Name and default of each field, in order; `...` for one that is needed."""
    if dataclasses.is_dataclass(kind):
        return [(field.name, ... if field.default is dataclasses.MISSING else field.default) for field in dataclasses.fields(kind)]
    return [(field.name, field.default) for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_in_the_guide_with_its_default(heading):
    words = {...: "needed", None: "none"}
    expected = [(name, words.get(default, f"`{spelt(default)}`")) for name, default in fields(SECTIONS[heading])]
    assert [(key, default.strip()) for key, default in table(heading)] == expected


def test_every_metric_is_in_the_guide():
    made = {
        str(node.args[0].value)
        for tree in shipped().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args and isinstance(node.args[0], ast.Constant)
        if node.func.attr.startswith("create_") and str(node.args[0].value).startswith(("rpc.", "volgate."))
    }
    rows = re.search(r"^\| metric .*?\n\n", GUIDE, re.MULTILINE | re.DOTALL)
    assert rows
    assert set(re.findall(r"^\| `([a-z.]+)` \|", rows[0], re.MULTILINE)) == made


def test_the_fixed_limits_are_the_code_s():
    most_message = inspect.signature(EdgeServer).parameters["max_message"].default
    said = " ".join(GUIDE.split())
    assert f"a message of at most {most_message >> 20} MiB, chunks of an import of at most {transfer._CHUNK_MOST >> 20} MiB" in said
    assert f"pages of at most {validate._PAGE_MOST} rows ({validate._PAGE_DEFAULT} if not asked)" in said
    assert f"Sizes round up to {GRAIN} bytes" in said
    assert validate.labels({f"k{n}": "" for n in range(64)}, "labels") and "64 labels" in said
    with pytest.raises(InvalidRequest):
        validate.labels({f"k{n}": "" for n in range(65)}, "labels")


def test_the_files_of_a_pool_are_called_as_the_guide_and_the_runbook_say():
    runbook = (Path(__file__).parents[2] / "docs/runbook.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.-]+\.json)`", GUIDE + runbook))
    assert {MANIFEST, MARKER} == named
