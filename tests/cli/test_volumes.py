"""Every command of pools, volumes, snapshots, hosts, operations and plugins, as a table and as JSON."""

import pytest

from tests.cli.conftest import Cli
from tests.edge.server import Server

MIB = 1 << 20
VOLUME_FIELDS = {
    "name", "uid", "size_bytes", "format", "provisioning", "state", "allocated_bytes", "source", "labels", "created_at", "observed_at",
    "problem", "depth", "attachments",
}  # fmt: skip


def test_the_command_of_the_readme(cli):
    made = cli.process("volume", "create", "readme", "--pool", "default", "--size", "1GiB", "--format", "qcow2", "--output", "json").tree
    assert made.keys() == VOLUME_FIELDS
    assert (made["name"], made["size_bytes"], made["format"]) == ("pools/default/volumes/readme", 1 << 30, "VOLUME_FORMAT_QCOW2")
    assert (made["state"], made["labels"], made["attachments"]) == ("VOLUME_STATE_READY", {}, [])


def test_create_show_list_expand_label_delete(cli):
    made = cli("volume", "create", "default/a", "--size", "1.5MiB", "--format", "raw", "--label", "tier=gold", "--thick")
    shown = dict(line.split("  ", 1) for line in made.out.splitlines())
    facts = {key.strip(): value.strip() for key, value in shown.items()}
    assert (facts["name"], facts["size"], facts["format"]) == ("pools/default/volumes/a", "1.5 MiB", "raw")
    assert (facts["labels"], facts["provisioning"], facts["state"]) == ("tier=gold", "thick", "ready")

    assert cli("volume", "expand", "default/a", "--size", "3M").out.splitlines()[2].split() == ["size", "3", "MiB"]
    assert cli.json("volume", "label", "pools/default/volumes/a", "x=1", "y=2")["labels"] == {"x": "1", "y": "2"}
    assert cli.json("volume", "label", "default/a")["labels"] == {}
    assert cli.json("volume", "show", "default/a", "--refresh")["size_bytes"] == 3 * MIB

    listed = cli("volume", "list", "--pool", "default")
    assert listed.out.splitlines()[0].split() == ["NAME", "SIZE", "USED", "FORMAT", "STATE", "ATTACHED", "PROBLEM"]
    assert [row[0] for row in listed.lines if row[0] == "default/a"] == ["default/a"]
    assert not any(line != line.rstrip() for line in listed.out.splitlines())
    rows = cli.json("volume", "list")
    assert isinstance(rows, list)
    assert [row["size_bytes"] for row in rows if row["name"].endswith("/a")] == [3 * MIB]

    assert cli("volume", "delete", "default/a").out == "default/a deleted\n"
    assert cli.json("volume", "delete", "default/a") == {"name": "pools/default/volumes/a", "deleted": True}
    cli("volume", "show", "default/a", status=3)


@pytest.mark.parametrize("word", ["volumes", "snapshots", "pools"])
def test_pools_volumes_and_snapshots_may_be_called_as_collections_are(word, tmp_path):
    server = Server(tmp_path / "state", config=f'[pools.{word}]\nkind = "directory"\npath = "{tmp_path}/pool"\n').start()
    try:
        cli = Cli(server.address)
        made = cli.json("volume", "create", word, "--pool", word, "--size", "1MiB", "--format", "qcow2")
        assert made["name"] == f"pools/{word}/volumes/{word}"
        assert cli.json("snapshot", "create", word, "--volume", f"{word}/{word}")["size_bytes"] == MIB
        made = cli.json("volume", "create", f"{word}/clone", "--from", f"{word}/{word}/{word}")
        assert made["source"] == f"pools/{word}/volumes/{word}/snapshots/{word}"
        assert cli.json("volume", "create", f"{word}/copy", "--from", f"{word}/{word}")["source"] == f"pools/{word}/volumes/{word}"
        cli("volume", "export", f"{word}/{word}/{word}", "--file", str(tmp_path / "image"))
        assert [row[0] for row in cli("snapshot", "list", "--pool", word).lines] == [f"{word}/{word}/{word}"]
        assert len(cli.json("volume", "list", "--pool", word)) == 3
    finally:
        assert server.stop() == 0


def test_snapshots_reverts_and_clones(cli):
    cli("volume", "create", "default/s", "--size", "1MiB", "--format", "qcow2")
    made = cli.json("snapshot", "create", "one", "--volume", "default/s", "--label", "why=test")
    assert made.keys() == {"name", "uid", "volume_uid", "size_bytes", "labels", "created_at", "quiesced"}
    cli("volume", "expand", "default/s", "--size", "2MiB")
    assert cli.json("volume", "revert", "default/s", "--snapshot", "one")["size_bytes"] == MIB
    clone = cli.json("volume", "create", "default/clone", "--from", "default/s/one", "--size", "4MiB")
    assert (clone["size_bytes"], clone["source"]) == (4 * MIB, "pools/default/volumes/s/snapshots/one")
    copied = cli("volume", "create", "default/copy", "--from", "default/s")
    assert "source        pools/default/volumes/s\n" in copied.out
    assert [row[0] for row in cli("snapshot", "list", "--volume", "default/s").lines] == ["default/s/one"]
    assert len(cli.json("snapshot", "list", "--pool", "default")) == 1
    assert "why=test" in cli("snapshot", "show", "default/s/one").out
    for name in ("clone", "copy"):
        cli("volume", "delete", f"default/{name}")
    assert cli("snapshot", "delete", "default/s/one").out == "default/s/one deleted\n"
    cli("snapshot", "show", "default/s/one", status=3)


def test_adoption_of_a_file_that_others_made(cli, server):
    foreign = server.state / "pools" / "default" / "foreign.raw"
    foreign.write_bytes(b"x" * MIB)
    made = cli.json("volume", "adopt", "default/adopted", "--locator", "foreign.raw", "--format", "raw")
    assert (made["name"], made["size_bytes"]) == ("pools/default/volumes/adopted", MIB)


@pytest.mark.parametrize("words", [
    ("volume", "create", "default/dry", "--size", "1MiB"),
    ("volume", "delete", "default/base"),
    ("volume", "expand", "default/base", "--size", "9MiB"),
    ("volume", "revert", "default/base", "--snapshot", "s"),
    ("snapshot", "create", "t", "--volume", "default/base"),
    ("snapshot", "delete", "default/base/s"),
])  # fmt: skip
def test_dry_run_tells_the_plan_and_changes_nothing(cli, words):
    cli("volume", "create", "default/base", "--size", "1MiB", "--format", "qcow2")
    cli("snapshot", "create", "s", "--volume", "default/base")
    before = cli.json("volume", "list"), cli.json("snapshot", "list")
    plan = cli.json(*words, "--dry-run")
    assert plan.keys() == {"steps", "space_bytes", "blockers"}
    assert plan["steps"]
    assert cli(*words, "--dry-run").out.startswith("would: ")
    assert [{**v, "observed_at": ""} for v in cli.json("volume", "list")] == [{**v, "observed_at": ""} for v in before[0]]
    assert cli.json("snapshot", "list") == before[1]


def test_pools(cli):
    assert cli("pool", "list").lines[0][:3] == ["default", "directory", "ok"]
    pool = cli.json("pool", "show", "default")
    assert (pool["kind"], pool["health"], pool["formats"]) == ("directory", "POOL_HEALTH_OK", ["qcow2", "raw"])
    assert isinstance(pool["free_bytes"], int)
    assert cli.json("pool", "drain", "default")["draining"] is True
    cli("volume", "create", "default/refused", "--size", "1MiB", status=4)
    assert cli.json("pool", "drain", "default", "--resume")["draining"] is False
    assert cli("pool", "show", "pools/default").out.startswith("name                      pools/default\n")


def test_hosts(cli):
    (host,) = cli.json("host", "list")
    assert host.keys() == {
        "name", "uri", "connected", "problem", "libvirt_version", "qemu_version", "boot_id", "machine_id", "features", "domains",
        "address", "live", "last_heartbeat", "cordoned", "iqn", "nqn", "nvme_host_id", "version", "released", "fenced_pools",
    }  # fmt: skip
    assert cli.json("host", "show", host["name"].removeprefix("hosts/"))["uri"] == "qemu:///system"
    assert cli("host", "list").lines[0][0] == host["name"].removeprefix("hosts/")
    assert cli("host", "show", host["name"]).out.splitlines()[0].split() == ["name", host["name"]]


def test_the_maintenance_and_the_end_of_a_host(cli):
    name = cli.json("host", "list")[0]["name"].removeprefix("hosts/")
    assert cli("host", "cordon", name).out == f"{name} is cordoned; nothing is attached there\n"
    assert "cordoned" in cli("host", "show", name).out
    assert cli.json("host", "cordon", name)["host"]["cordoned"] is True
    assert cli("host", "uncordon", name).out == f"{name} is open\n"
    assert cli.json("host", "uncordon", name) == cli.json("host", "uncordon", name)
    assert "assume_off" in cli("host", "release", name, status=2).err
    assert "HOST_LIVE" in cli("host", "release", name, "--assume-off", status=4).err
    assert "configuration" in cli("host", "remove", name, status=4).err
    assert cli("host", "remove", "nobody").out == "nobody is removed\n"
    assert "NOT_FOUND" in cli("host", "cordon", "nobody", status=3).err


def test_operations_by_id_and_by_request_id(cli):
    cli("volume", "create", "default/op", "--size", "1MiB", "--request-id", "mine")
    (operation,) = [o for o in cli.json("operation", "list") if o["request_id"] == "mine"]
    identifier = operation["name"].removeprefix("operations/")
    assert operation["state"] == "OPERATION_STATE_DONE"
    assert cli.json("operation", "show", identifier) == operation
    assert cli.json("operation", "watch", identifier) == operation
    assert "state       done\n" in cli("operation", "cancel", operation["name"]).out
    assert identifier in cli("operation", "list").out
    assert cli.json("operation", "list", "--unfinished") == []


def test_plugins_need_no_server(cli):
    names = ["directory", "memory", "ceph-rbd", "lvm", "iscsi"]
    assert cli("plugins", "--server", "unix:/nowhere").out.split() == [w for name in names for w in (name, "built-in", "loaded", name)]
    plain = {"version": "built-in", "status": "loaded", "problem": "", "action": ""}
    assert cli.json("plugins") == [{"name": name, "kinds": [name], **plain} for name in names]


def test_empty_lists_are_an_empty_array_and_a_header(cli):
    assert cli.json("attachment", "list") == []
    assert cli("attachment", "list").out == "ID  VOLUME  HOST  DOMAIN  TARGET  STATE  PROBLEM\n"


def test_paths_of_a_detached_volume(cli):
    cli("volume", "create", "default/p", "--size", "1MiB")
    answer = cli.json("attachment", "paths", "default/p")
    assert answer["redundancy"] == "REDUNDANCY_SINGLE"
    assert {path["transport"] for path in answer["paths"]} >= {"file", "filesystem"}
    assert all(path["state"] == "PATH_STATE_ACTIVE_OPTIMIZED" for path in answer["paths"])
    shown = cli("attachment", "paths", "default/p")
    assert shown.out.splitlines()[-1] == "pools/default/volumes/p is single"
