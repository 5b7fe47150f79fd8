"""Groups of snapshots, changed blocks and fences on the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.edge.server import Server

CONFIG = '[hosts.lab]\nuri = "test:///default"\n[pools.sim]\nkind = "memory"\n'


@pytest.fixture(scope="module")
def volgate() -> Iterator[Cli]:
    """Commands to a gateway with a simulated array."""
    with tempfile.TemporaryDirectory(prefix="vg-cli-", dir="/tmp") as folder:
        server = Server(Path(folder, "state"), config=CONFIG).start()
        yield Cli(server.address)
        assert server.stop() == 0


def test_a_group_is_cut_and_shown_and_its_members_are_snapshots(volgate):
    for name in ("a", "b"):
        volgate("volume", "create", name, "--pool", "sim", "--size", "1MiB")
    plan = volgate("snapshot", "group", "a=monday", "b=monday", "--pool", "sim", "--dry-run")
    assert "would: cut" in plan.out
    assert [row[0] for row in volgate("snapshot", "group", "sim/a=monday", "b=monday", "--pool", "sim").lines] == [
        "sim/a/monday",
        "sim/b/monday",
    ]
    assert {cut["name"] for cut in volgate.json("snapshot", "list", "--pool", "sim")} == {
        "pools/sim/volumes/a/snapshots/monday",
        "pools/sim/volumes/b/snapshots/monday",
    }
    taken = volgate("snapshot", "group", "a=monday", "--pool", "sim", "--output", "json", status=4)
    assert taken.error["reason"] == "EXISTS_DIFFERENT"
    volgate("snapshot", "group", "a=x", "a=y", "--pool", "sim", status=2)
    volgate("snapshot", "group", "a=x", "sim/a=y", "--pool", "sim", status=2)
    volgate("snapshot", "group", "sim/a=x", "default/b=y", status=2)


def test_changes_are_listed_by_offset(volgate):
    image = Path(tempfile.mkstemp(prefix="vg-cli-")[1])
    try:
        image.write_bytes(bytes(1 << 20) + b"\1" * 8192)
        volgate("volume", "import", "sim/c", "--file", str(image), "--source-format", "raw")
    finally:
        image.unlink()
    volgate("snapshot", "create", "s", "--volume", "sim/c")
    assert volgate("volume", "changes", "sim/c", "--snapshot", "sim/c/s", "--exact").lines == [["1048576", "8192", "data"]]
    assert volgate.json("volume", "changes", "sim/c", "--base", "s") == []
    assert volgate("volume", "changes", "sim/c", "--base", "none", status=3)


def test_the_gateway_s_own_host_is_not_fenced_and_letting_it_in_changes_nothing(volgate):
    refused = volgate("host", "fence", "lab", "--address", "192.0.2.1", "--output", "json", status=4)
    assert refused.error["reason"] == "FENCE_SELF"
    assert volgate("host", "fence", "lab", "--address", "nowhere", status=2)
    assert "lab is let in" in volgate("host", "unfence", "lab").out
    assert volgate("host", "list").lines[0][1] == "up"
