"""The database is lost, newer, older, damaged, locked or restored: what only it knew is rebuilt, and nothing is believed before."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.edge.plugin import plugin
from tests.labs.domain import Guest
from tests.recovery.calls import POOL, Call, Caller, Refused, snapshot_name, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import fingerprint, stray
from volgate.cli import state
from volgate.errors import DataLoss, Precondition
from volgate.store.database import Database, StateLock
from volgate.v1 import attachment_pb2, volume_pb2

MIB = 1 << 20


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


def create(name: str, **fields: object) -> Call:
    return Call("create", {"pool": POOL, "volume_id": name, "size_bytes": MIB, **rid(), **fields})


def snapshot(name: str, cut: str) -> Call:
    return Call("snapshot", {"volume": volume_name(name), "snapshot_id": cut, "labels": {"of": cut}, **rid()})


def lose(daemon: Daemon) -> None:
    """Remove the database as an accident would."""
    for path in daemon.state.glob("volgate.db*"):
        path.unlink()


def seen(caller: Caller) -> tuple[object, object]:
    """Volumes and snapshots as the index has them, without the time of the look."""
    volumes = caller.list_volumes()
    for row in volumes.values():
        row.ClearField("observed_at")
    return volumes, {name: caller.list_snapshots(name) for name in volumes}


def furnish(daemon: Daemon, caller: Caller) -> None:
    """Volumes of every kind: labelled, snapshotted, cloned, imported, raw."""
    caller(create("a", labels={"tier": "gold"}))
    for cut in ("s", "t"):
        caller(snapshot("a", cut))
        write_pattern(daemon, "a", 5)
    caller(create("clone", source=snapshot_name("a", "s"), size_bytes=0))
    caller(create("raw", format=volume_pb2.VOLUME_FORMAT_RAW))
    image = make_image(daemon.images / "i.qcow2", MIB, 9)
    caller(Call("import", {"pool": POOL, "volume_id": "i", "path": str(image), "source_format": volume_pb2.VOLUME_FORMAT_QCOW2, **rid()}))
    caller(Call("expand", {"name": volume_name("a"), "size_bytes": 3 * MIB, **rid()}))
    caller.settle()
    for name in caller.list_volumes():
        caller.volume(name, refresh=True)  # what was written beside the gateway


def rescan(daemon: Daemon) -> str:
    command = [sys.executable, "-m", "volgate.cli", "rescan", "--state-dir", str(daemon.state), "--config", str(daemon.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("by", ["rescan", "start"])
def test_volumes_snapshots_and_labels_come_back(base: Path, by: str):
    with Daemon(base) as daemon, daemon.caller() as caller:
        furnish(daemon, caller)
        before, files = seen(caller), fingerprint(daemon.pool)
        daemon.stop()
        lose(daemon)
        if by == "rescan":
            rescan(daemon)
        daemon.start()
        deadline = time.monotonic() + 20
        while seen(caller) != before and by == "start" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert seen(caller) == before
        assert fingerprint(daemon.pool) == files
        assert caller(create("a", labels={"tier": "gold"}, size_bytes=MIB)).volume.uid == before[0]["a"].uid
        with pytest.raises(Refused, match="differs"):
            caller(create("a", size_bytes=5 * MIB))


def test_what_was_half_made_when_the_database_was_lost_is_cleared_away(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller:
        furnish(daemon, caller)
        daemon.stop()
        lose(daemon)
        half = daemon.pool / ".work" / "half.12345678"
        half.mkdir()
        (half / "0000.qcow2").write_bytes(b"half")
        daemon.start()
        assert stray(daemon.pool, daemon.state / "spool") == []


def attach(caller: Caller, name: str, guest: Guest, **options: object) -> attachment_pb2.Attachment:
    chosen = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI, **options)
    return caller(Call("attach", {"volume": volume_name(name), "domain": guest.name, "options": chosen, **rid()})).attachment


def test_attachments_are_rebuilt_from_libvirt(base: Path, guest: Guest):
    limits = volume_pb2.Qos(total_iops_sec=1000, read_bytes_sec=10 * MIB)
    with Daemon(base, uri=guest.libvirtd.uri) as daemon, daemon.caller() as caller:
        for name in ("a", "b", "c"):
            caller(create(name))
        attach(caller, "a", guest)
        attach(caller, "b", guest, access=attachment_pb2.ACCESS_MODE_READ_ONLY, qos=limits, cache=attachment_pb2.CACHE_MODE_DIRECTSYNC)
        caller(snapshot("a", "s"))
        before = {row.name: row for row in caller.list_attachments()}
        daemon.kill9()
        lose(daemon)
        daemon.start()
        with pytest.raises(Refused, match="detach it first"):
            caller(Call("delete", {"name": volume_name("a"), **rid()}))
        after = {row.name: row for row in caller.list_attachments()}
        for row in (*before.values(), *after.values()):
            row.ClearField("created_at")
        assert after == before
        assert len(guest.disks()) == 2
        for name in after:
            caller(Call("detach", {"name": name, "wait_seconds": 60, **rid()}))
        assert guest.disks() == []
        caller.settle()
        assert stray(daemon.pool) == []


def test_nothing_is_deleted_before_libvirt_has_said_what_is_attached(base: Path, guest: Guest):
    daemon = Daemon(base, uri=guest.libvirtd.uri)
    good = daemon.config.read_text()
    good = good.replace("check_seconds = 600", "check_seconds = 0.5")
    daemon.config.write_text(good)
    with daemon, daemon.caller() as caller:
        caller(create("a"))
        attached = attach(caller, "a", guest)
        daemon.stop()
        lose(daemon)
        away = Path(re.search(r"socket=([^&]+)", guest.libvirtd.uri)[1])
        with _hidden(away):
            daemon.start()
            with pytest.raises(Refused) as refused:
                caller.once(Call("delete", {"name": volume_name("a"), **rid()}), 20)
            assert refused.value.code == "UNAVAILABLE"
            assert "nobody knows what is attached" in refused.value.message
            caller(create("b"))  # what is new cannot be attached
        with pytest.raises(Refused, match="detach it first"):
            caller(Call("delete", {"name": volume_name("a"), **rid()}))
        assert [row.name for row in caller.list_attachments()] == [attached.name]
        caller(Call("detach", {"name": attached.name, "wait_seconds": 60, **rid()}))


SLOW = '''
"""A backend whose listing hangs for as long as a file exists."""
import pathlib
import time
from volgate.backend import BackendType, hookimpl
from volgate_plugins.directory import Directory, DirectorySettings

class Slow(Directory):
    def list_volumes(self):
        while (pathlib.Path(__file__).parent / "hang").exists():
            time.sleep(0.05)
        return super().list_volumes()

@hookimpl
def volgate_backends():
    return [BackendType(kind="slow", settings=DirectorySettings, open=Slow.open, summary="hangs")]
'''


def test_a_pool_that_hangs_keeps_no_other_pool_from_its_attachments(base: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch):
    """What is attached of a pool is known when the hosts and that pool have answered; before, nothing of it is destroyed."""
    with plugin("slow", SLOW) as folder:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", "")))))
        daemon = Daemon(base, uri=guest.libvirtd.uri, extra=f'[pools.slow]\nkind = "slow"\npath = "{base}/slow"\n')
        daemon.config.write_text(daemon.config.read_text().replace("check_seconds = 600", "check_seconds = 0.5"))
        with daemon, daemon.caller() as caller:
            caller(create("free"))
            caller(create("held"))
            there = caller(Call("create", {"pool": "pools/slow", "volume_id": "v", "size_bytes": MIB, **rid()})).volume.name
            attached = attach(caller, "held", guest).name
            options = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI)
            far = caller(Call("attach", {"volume": there, "domain": guest.name, "options": options, **rid()})).attachment.name
            daemon.stop()
            lose(daemon)
            (folder / "hang").touch()
            deletes = {name: Call("delete", {"name": name, **rid()}) for name in (volume_name("free"), volume_name("held"), there)}
            with _hidden(Path(re.search(r"socket=([^&]+)", guest.libvirtd.uri)[1])):
                daemon.start(60)
                for call in deletes.values():
                    assert _unknown(caller, call)
            caller(deletes[volume_name("free")])
            with pytest.raises(Refused, match="detach it first"):
                caller(deletes[volume_name("held")])
            assert "health of pools/slow" in _unknown(caller, deletes[there])
            assert [row.name for row in caller.list_attachments()] == [attached]
            (folder / "hang").unlink()
            with pytest.raises(Refused, match="detach it first"):
                caller(deletes[there])
            assert {row.name for row in caller.list_attachments()} == {attached, far}
            for name in (attached, far):
                caller(Call("detach", {"name": name, "wait_seconds": 60, **rid()}))
            caller(deletes[volume_name("held")])
            caller(deletes[there])


def _unknown(caller: Caller, call: Call) -> str:
    """The refusal of a call that nobody can decide yet."""
    with pytest.raises(Refused, match="nobody knows what is attached") as refused:
        caller.once(call, 20)
    assert refused.value.code == "UNAVAILABLE"
    return refused.value.message


@contextlib.contextmanager
def _hidden(socket: Path):
    """A libvirtd whose socket cannot be found for a while."""
    socket.rename(socket.with_name("hidden"))
    try:
        yield
    finally:
        socket.with_name("hidden").rename(socket)


def test_a_start_rids_a_guest_of_what_an_interrupted_attach_left(base: Path, guest: Guest):
    with Daemon(base, uri=guest.libvirtd.uri) as daemon, daemon.caller() as caller:
        caller(create("a"))
        daemon.stop()
        (path,) = (daemon.pool / "volumes").glob("a.*/0000.qcow2")
        guest.qmp("blockdev-add", **{"node-name": "libvirt-99-storage", "driver": "file", "filename": str(path)})
        guest.qmp("blockdev-add", **{"node-name": "libvirt-99-format", "driver": "qcow2", "file": "libvirt-99-storage"})
        guest.qmp("device_add", driver="scsi-hd", drive="libvirt-99-format", id="ua-vg-00000000-11111111", bus="scsi0.0")
        daemon.start()
        assert not [node for node in guest.qmp("query-named-block-nodes") if node["node-name"].startswith("libvirt-99")]
        assert guest.disks() == []
        attach(caller, "a", guest)
        guest.detach_all(60)


def test_a_newer_database_is_refused_untouched(base: Path):
    daemon = Daemon(base)
    with daemon:
        pass
    path = daemon.state / "volgate.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("update meta set value = '99' where key = 'schema'")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="has schema 99"):
        daemon.start()
    assert path.read_bytes() == before


def test_a_damaged_database_is_refused_with_advice(tmp_path: Path):
    path = tmp_path / "volgate.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(DataLoss, match="restore a backup, or remove it"):
        Database(path)


def test_a_state_directory_serves_one_process(base: Path):
    with Daemon(base) as daemon:
        done = subprocess.run(daemon.command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode != 0
        assert f"process {daemon.pid}" in done.stderr
        with pytest.raises(Precondition, match="stop it first"):
            StateLock(daemon.state)
    StateLock(daemon.state).release()


def test_a_backup_taken_while_calls_run_restores_what_was_answered_before_it(base: Path):
    target = base / "backup.db"
    with Daemon(base) as daemon, daemon.caller() as caller:
        furnish(daemon, caller)
        kept = create("kept")
        answer = caller(kept)
        state.backup(daemon.config, daemon.state, target)
        caller(create("later"))
        with pytest.raises(Precondition, match="stop it first"):
            state.restore(daemon.config, daemon.state, target)
        daemon.stop()
        lose(daemon)
        state.restore(daemon.config, daemon.state, target)
        daemon.start()
        assert caller(kept) == answer  # recorded answers are back
        deadline = time.monotonic() + 20
        while "later" not in caller.list_volumes():  # the storage is the truth: what came after the backup is found again
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert stray(daemon.pool) == []


def test_operations_that_a_backup_holds_half_done_are_not_run_again(base: Path):
    """They ended one way or the other since; the storage may hold newer objects under the same names."""
    target = base / "backup.db"
    with Daemon(base) as daemon, daemon.caller() as caller:
        caller(create("a", size_bytes=64 * MIB))
        write_pattern(daemon, "a", 1, length=48 * MIB)
        held = caller.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=volume_name("a")), timeout=60)
        next(held)
        delete = Call("delete", {"name": volume_name("a"), **rid()})
        with pytest.raises(Refused, match="DEADLINE"):
            caller.once(delete, 0.5)
        state.backup(daemon.config, daemon.state, target)
        list(held)
        caller(delete)
        newer = caller(create("a")).volume
        daemon.stop()
        state.restore(daemon.config, daemon.state, target)
        daemon.start()
        caller.settle()
        assert caller.volume("a", refresh=True).uid == newer.uid


def test_a_database_of_an_earlier_schema_is_led_to_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from sqlalchemy import Connection

    from volgate.store import migrations, tables

    path = tmp_path / "volgate.db"
    Database(path).close()
    ran: list[int] = []

    def step(number: int):
        def run(connection: Connection) -> None:
            ran.append(number)
            connection.exec_driver_sql(f"create table made_by_{number} (x integer)")

        return run

    now = tables.SCHEMA_VERSION
    monkeypatch.setattr(tables, "SCHEMA_VERSION", now + 2)
    monkeypatch.setitem(migrations.STEPS, now, step(now))
    monkeypatch.setitem(migrations.STEPS, now + 1, lambda _: (_ for _ in ()).throw(RuntimeError("power cut")))
    with pytest.raises(RuntimeError, match="power cut"):
        Database(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:  # one transaction: all steps or none
        assert not connection.execute("select name from sqlite_master where name like 'made_by_%'").fetchall()
        assert connection.execute("select value from meta where key = 'schema'").fetchone() == (str(now),)
    monkeypatch.setitem(migrations.STEPS, now + 1, step(now + 1))
    Database(path).close()
    assert ran == [now, now, now + 1]
    Database(path).close()
    assert ran == [now, now, now + 1]
