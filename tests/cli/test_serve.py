"""`volgate serve`: start, stop, configuration, the lock of the state directory; backup, restore, rescan, doctor."""

import shutil
import signal
import sqlite3
import time

import pytest

from tests.cli.conftest import Cli, process
from tests.edge.server import Server

MIB = 1 << 20
NOBODY = Cli("unix:/nowhere")  # for commands that ask no server


@pytest.fixture
def server(place):
    made = Server(place / "state").start()
    yield made
    made.stop()


def config(place, text):
    path = place / "volgate.toml"
    path.write_text(text)
    return str(path)


def test_serve_without_configuration_serves_a_default_pool_on_its_socket(server, cli):
    assert [pool["name"] for pool in cli.json("pool", "list")] == ["pools/default"]
    assert (server.state / "volgate.sock").stat().st_mode & 0o777 == 0o660
    assert (server.state / "volgate.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_at_a_signal_and_takes_its_socket_away(server, cli, sign):
    cli("volume", "create", "default/kept", "--size", "1MiB")
    began = time.monotonic()
    server.process.send_signal(sign)
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 15
    assert not (server.state / "volgate.sock").exists()
    server.start()
    assert [volume["name"] for volume in cli.json("volume", "list")] == ["pools/default/volumes/kept"]


def test_a_state_directory_in_use_is_refused_naming_the_process(server):
    ran = process("serve", "--state-dir", str(server.state), status=4)
    assert f"is used by process {server.process.pid}" in ran.err
    assert "STATE_LOCKED" in NOBODY("restore", str(server.state / "volgate.db"), "--state-dir", str(server.state), status=4).err
    assert "STATE_LOCKED" in process("rescan", "--state-dir", str(server.state), status=4).err


@pytest.mark.parametrize(("text", "told"), [
    ("[server]\nsoket = 'x'\n", "unknown key 'server.soket'; did you mean 'socket'?"),
    ("[limits]\nscan_seconds = 'often'\n", "limits"),
    ("[pools.p]\nkind = 'directroy'\npath = '/tmp/x'\n", "[pools.p] kind: no plugin offers pools of kind 'directroy'"),
    ("[pools.p]\nkind = 'directory'\npaht = '/tmp/x'\n", "paht"),
    ("[server\n", "volgate.toml"),
    (f"[server]\nsocket = '/tmp/{'x' * 110}'\n", "server.socket: "),
    ("[server]\nsocket_mode = '0999'\n", "server.socket_mode: '0999' is no mode"),
    ("[server]\nsocket_group = 'no-such-group'\n", "server.socket_group: there is no group 'no-such-group'"),
    ("[telemetry]\nlog_level = 'loud'\n", "telemetry.log_level: 'loud' is not debug"),
])  # fmt: skip
def test_a_wrong_configuration_is_refused_naming_the_key(place, text, told):
    ran = NOBODY("serve", "--config", config(place, text), "--state-dir", str(place / "state"), "--check", status=2)
    assert told in ran.err
    assert len(ran.err.splitlines()) <= 2


def test_serve_with_a_wrong_configuration_touches_nothing(place):
    path = config(place, "[servr]\n")
    assert (
        "unknown key 'servr'; did you mean 'server'?" in process("serve", "--config", path, "--state-dir", str(place / "s"), status=2).err
    )
    assert not (place / "s").exists()


def test_a_configuration_that_is_not_there_is_told(place):
    assert "No such file" in NOBODY("serve", "--config", str(place / "none.toml"), status=2).err


def test_a_good_configuration_is_checked_without_opening_anything(place):
    text = f"[server]\nstate_dir = '{place}/state'\n[pools.p]\nkind = 'directory'\npath = '{place}/pool'\n"
    NOBODY("serve", "--config", config(place, text), "--check")
    assert sorted(entry.name for entry in place.iterdir()) == ["volgate.toml"]


def test_a_state_directory_that_cannot_be_made_is_told(place):
    (place / "file").write_text("")
    ran = process("serve", "--state-dir", str(place / "file" / "state"), status=1)
    assert str(place / "file") in ran.err


def test_serve_that_cannot_listen_ends_cleanly(server, place):
    text = f"[server]\nsocket = '{server.state}/volgate.sock'\n"
    ran = process("serve", "--config", config(place, text), "--state-dir", str(place / "other"), status=4)
    assert f"another server listens on {server.state}/volgate.sock" in ran.err
    assert "excepthook" not in ran.err


def test_a_backup_of_a_running_gateway_brings_its_records_back(server, cli, place):
    cli("volume", "create", "default/early", "--size", "1MiB", "--request-id", "early")
    facts = NOBODY("backup", str(place / "copy.db"), "--state-dir", str(server.state), "--output", "json").tree
    assert facts == {"file": f"{place}/copy.db", "bytes": (place / "copy.db").stat().st_size}
    assert (place / "copy.db").stat().st_mode & 0o777 == 0o600
    cli("volume", "create", "default/late", "--size", "1MiB", "--request-id", "late")
    assert server.stop() == 0

    ran = NOBODY("restore", str(place / "copy.db"), "--state-dir", str(server.state))
    assert "volgate rescan" in ran.out
    assert (server.state / "volgate.db.before-restore").stat().st_size > 0
    assert process("rescan", "--state-dir", str(server.state), "--output", "json").tree.keys() == {"default"}
    server.start()
    assert [volume["name"] for volume in cli.json("volume", "list")] == ["pools/default/volumes/early", "pools/default/volumes/late"]
    assert [o["request_id"] for o in cli.json("operation", "list")] == ["early"]


def test_a_restore_into_an_empty_state_directory_takes_the_pools_over(server, cli, place):
    cli("volume", "create", "default/survivor", "--size", "1MiB")
    NOBODY("backup", str(place / "copy.db"), "--state-dir", str(server.state))
    assert server.stop() == 0
    for name in ("volgate.db", "instance", "lock"):
        (server.state / name).unlink()
    NOBODY("restore", str(place / "copy.db"), "--state-dir", str(server.state))
    server.start()
    assert cli.json("pool", "show", "default")["health"] == "POOL_HEALTH_OK"
    assert cli.json("volume", "show", "default/survivor", "--refresh")["size_bytes"] == MIB


def test_what_is_no_backup_is_refused_and_the_database_stays(server, cli, place):
    cli("volume", "create", "default/v", "--size", "1MiB")
    NOBODY("backup", str(place / "copy.db"), "--state-dir", str(server.state))
    assert server.stop() == 0
    before = (server.state / "volgate.db").read_bytes()
    (place / "text").write_text("no database")
    (place / "cut").write_bytes((place / "copy.db").read_bytes()[:20000])
    newer = shutil.copy(place / "copy.db", place / "newer")
    with sqlite3.connect(newer) as database:
        database.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
    database.close()
    for name, told in (("text", "is no backup"), ("cut", "cut"), ("newer", "SCHEMA_NEWER")):
        assert told in NOBODY("restore", str(place / name), "--state-dir", str(server.state), status=4).err
    NOBODY("restore", str(place / "none"), "--state-dir", str(server.state), status=3)
    assert (server.state / "volgate.db").read_bytes() == before


def test_a_backup_without_a_database_is_refused(place):
    assert "--state-dir" in NOBODY("backup", str(place / "copy.db"), "--state-dir", str(place), status=3).err
    assert not list(place.iterdir())


def test_a_lost_database_is_rebuilt_by_rescan(server, cli):
    made = cli.json("volume", "create", "default/lost", "--size", "1MiB", "--label", "a=b")
    assert server.stop() == 0
    for path in server.state.glob("volgate.db*"):
        path.unlink()
    assert process("rescan", "--state-dir", str(server.state), "--output", "json").tree == {"default": 1}
    server.start()
    found = cli.json("volume", "show", "default/lost")
    assert (found["uid"], found["labels"]) == (made["uid"], {"a": "b"})


def test_doctor_finds_what_is_wrong_and_says_what_to_do(server, cli):
    ran = cli.process("doctor", "--state-dir", str(server.state), status=1)
    assert "PROBLEM  hosts/" in ran.out
    assert "do: start libvirtd, and let the gateway's user connect to qemu:///system" in ran.out
    assert "ok       pools/default: directory, ok" in ran.out
    assert ran.out.splitlines()[-1] == "1 problem(s)"
    found = cli("doctor", "--output", "json", "--state-dir", str(server.state), status=1).tree
    assert found["ok"] is False
    assert [f["subject"].partition("/")[0] for f in found["findings"] if not f["ok"]] == ["hosts"]
    assert all(f["action"] for f in found["findings"] if not f["ok"])


def test_doctor_finds_a_pool_that_is_gone(server, cli):
    pool = server.state / "pools" / "default"
    pool.rename(pool.with_name("away"))
    try:
        cli("pool", "show", "default")
        found = cli("doctor", "--output", "json", status=1).tree
    finally:
        pool.with_name("away").rename(pool)
    (problem,) = [f for f in found["findings"] if f["subject"] == "pools/default"]
    assert problem["ok"] is False
    assert "marker" in problem["seen"]


def test_doctor_warns_of_a_host_without_what_the_default_options_need(place):
    """libvirt's driver for tests has no QEMU at all."""
    kept = Server(place / "bare", config="[hosts.bare]\nuri = 'test:///default'\n").start()
    try:
        found = Cli(kept.address)("doctor", "--output", "json", status=1).tree
    finally:
        kept.stop()
    (lack,) = [f for f in found["findings"] if f["seen"].startswith("libvirt and QEMU lack")]
    assert (lack["ok"], lack["subject"]) == (False, "hosts/bare")
    for feature in ("virtio-blk (", "blockdev (", "external-snapshots ("):
        assert feature in lack["seen"]
    assert "test:///default" in lack["action"]


def test_doctor_without_a_server_says_how_to_start_it(place):
    ran = NOBODY("--server", f"unix:{place}/none", "doctor", "--timeout", "0.5", "--state-dir", str(place / "none"), status=1)
    assert "start it with `volgate serve`" in ran.out
    assert f"{place}/none: does not exist" in ran.out
    wrong = NOBODY("doctor", "--timeout", "0.5", "--server", f"unix:{place}/none", "--config", config(place, "[x]\n"), status=1)
    assert "unknown key 'x'" in wrong.out


def test_a_deleted_volume_comes_back_while_its_pool_keeps_it(place):
    text = f"[pools.p]\nkind = 'directory'\npath = '{place}/pool'\ntrash_seconds = 600\n"
    kept = Server(place / "kept", config=text).start()
    try:
        cli = Cli(kept.address)
        for mark in ("first", "second"):
            cli("volume", "create", "p/v", "--size", "1MiB", "--label", f"is={mark}")
            cli("volume", "delete", "p/v")
        listed = cli.json("pool", "foreign", "p")
        assert [found["locator"].rsplit(".", 2)[0] for found in listed] == ["trash:v", "trash:v"]
        assert "adopt it to have it back" in cli("pool", "foreign", "p").out
        assert cli.json("volume", "undelete", "p/v")["labels"] == {"is": "second"}, "the last deleted"
        (other,) = cli.json("pool", "foreign", "p")
        assert cli.json("volume", "undelete", "older", "--pool", "p", "--locator", other["locator"])["labels"] == {"is": "first"}
        assert "keeps no deleted volume v" in cli("volume", "undelete", "p/v", status=3).err
    finally:
        assert kept.stop() == 0
