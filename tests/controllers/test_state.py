"""The shared database by hand: a check before the start, the way from SQLite, backup and restore, a machine that is surely off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cli.conftest import process
from tests.controllers.fleet import Fleet, until
from tests.controllers.test_two import MIB, create, fresh, imported
from tests.labs.domain import Guest
from tests.recovery.calls import Call, Refused, volume_name
from tests.recovery.conftest import base  # noqa: F401  # a fixture
from tests.recovery.daemon import Daemon
from tests.recovery.halting import Halting
from tests.recovery.pool_files import stray
from volgate.v1 import attachment_pb2


def configured(fleet: Fleet) -> str:
    return str(fleet.member(1).config)


def test_a_check_before_the_start_asks_the_database_and_makes_nothing(fleet, postgres):
    told = process("serve", "--check", "--config", configured(fleet)).err
    assert f"the database {fleet.database} at 127.0.0.1: schema not made yet" in told
    assert fleet.rows("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == [(0,)]
    assert (
        "database: the database"
        in process("doctor", "--config", configured(fleet), "--server", "unix:/nowhere", "--timeout", "2", status=1).out
    )
    (fleet.base / "secret").write_text("another-password")
    assert (
        "do: bring it back" in process("doctor", "--config", configured(fleet), "--server", "unix:/nowhere", "--timeout", "2", status=1).out
    )
    refused = process("serve", "--check", "--config", configured(fleet), status=5).err
    assert "DATABASE_DOWN" in refused and "password authentication failed" in refused
    assert postgres.password not in told + refused and "another-password" not in refused
    (fleet.base / "secret").unlink()
    assert f"secret file:{fleet.base}/secret: No such file" in process("serve", "--check", "--config", configured(fleet), status=2).err


@pytest.mark.parametrize("url", ["postgresql://volgate:hunter22@127.0.0.1/x", "sqlite:///hunter22"])
def test_a_url_that_is_none_is_refused_without_being_repeated(fleet, url):
    config = fleet.member(1).config
    config.write_text(config.read_text().replace(fleet.server.url(fleet.database), url))
    refused = process("serve", "--config", configured(fleet), "--state-dir", str(fleet.base / "state"), status=2)
    assert "database.url" in refused.err and "hunter22" not in refused.err + refused.out
    assert not (fleet.base / "state").exists(), "nothing was touched"


def test_no_password_in_the_log_the_arguments_or_the_environment_of_what_is_started(fleet, postgres):
    with fleet.call(1) as one:
        one(create("v"))
        for pid in (fleet.member(1).pid, *fleet.member(1).descendants()):
            for file in ("cmdline", "environ"):
                assert postgres.password.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
        postgres_log = postgres.log()
    assert postgres.password not in fleet.member(1).tail() + postgres_log


def test_a_gateway_moves_to_postgresql_with_its_attachments_its_answers_and_what_it_was_at(base, postgres, guest: Guest):  # noqa: F811
    options = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI)
    database = postgres.create()
    secret = base / "secret"
    secret.write_text(postgres.password)
    url = postgres.url(database)
    with Daemon(base, uri=guest.libvirtd.uri, stop=0.2) as daemon, daemon.caller() as caller:
        made = create("v")
        uid = caller(made).volume.uid
        caller(create("other"))
        attached = caller(Call("attach", {"volume": volume_name("v"), "domain": guest.name, "options": options, "request_id": fresh()}))
        serials = [disk.serial for disk in guest.disks()]
        process("host", "cordon", "here", env={"VOLGATE_SERVER": daemon.address})
        refused = process("state", "move", "--to", url, "--password", f"file:{secret}", "--state-dir", str(daemon.state), status=4)
        assert "STATE_LOCKED" in refused.err
        daemon.kill9()
        left = process("state", "move", "--to", url, "--password", f"file:{secret}", "--state-dir", str(daemon.state), "--output", "json")
        assert left.tree["volume"] == 2 and left.tree["attachment"] == 1 and left.tree["host"] == 1
        assert not (daemon.state / "volgate.db").exists() and (daemon.state / "volgate.db.moved").exists()
        with daemon.config.open("a") as file:
            file.write(f'[database]\nurl = "{url}"\npassword = "file:{secret}"\n')
        daemon.start()
        assert caller(made).volume.uid == uid, "its answer is known"
        assert [row.name for row in caller.list_attachments()] == [attached.attachment.name]
        with pytest.raises(Refused, match="detach it first"):
            caller(Call("delete", {"name": volume_name("v"), "request_id": fresh()}))
        assert [disk.serial for disk in guest.disks()] == serials
        assert process("host", "show", "here", "--output", "json", env={"VOLGATE_SERVER": daemon.address}).tree["cordoned"] is True
        caller(Call("detach", {"name": attached.attachment.name, "wait_seconds": 60, "request_id": fresh()}))
        assert guest.disks() == []
        caller.settle()
        assert stray(daemon.pool) == []
        again = process("state", "move", "--to", url, "--password", f"file:{secret}", "--state-dir", str(daemon.state), status=3)
        assert "there is no database" in again.err
    postgres.drop(database)


def test_what_a_gateway_on_sqlite_was_at_is_gone_on_with_after_the_move(base, postgres):  # noqa: F811
    database, secret = postgres.create(), base / "secret"
    secret.write_text(postgres.password)
    url = postgres.url(database)
    with Daemon(base) as daemon, daemon.caller() as caller:
        call = create("v")
        caller(create("other"))
        daemon.kill9()
        _leave_unfinished(daemon, call)
        process("state", "move", "--to", url, "--password", f"file:{secret}", "--state-dir", str(daemon.state))
        with daemon.config.open("a") as file:
            file.write(f'[database]\nurl = "{url}"\npassword = "file:{secret}"\n')
        daemon.start()
        caller.settle()
        assert set(caller.list_volumes()) == {"v", "other"}
        assert caller(call).volume.name == volume_name("v")
    postgres.drop(database)


def _leave_unfinished(daemon: Daemon, call: Call) -> None:
    """A creation whose first commit is all that there is of it."""
    from volgate.operations import codec, requests
    from volgate.operations.job import Job
    from volgate.operations.requests import Caller
    from volgate.store import journal
    from volgate.store.database import Database

    request = requests.CreateVolume(pool="p", volume=call.fields["volume_id"], size=MIB)
    job = Job(request, Caller(request_id=call.fields["request_id"]), codec.body_hash(request), long=False)
    database = Database(daemon.state / "volgate.db")
    database.write(lambda commit: journal.begin(commit, job.record))
    database.close()


def test_a_restored_dump_runs_nothing_again_and_believes_no_attachment_unseen(fleet, postgres):
    name = fresh()
    call = imported(fleet, name)
    dump = postgres.base / "dump"
    with fleet.call(1) as one:
        first = create("v")
        uid = one(first).volume.uid
        with Halting(fleet[1], "qemu-img convert") as halting:
            try:
                one.once(call, 2)
            except Refused as error:
                assert error.code == "DEADLINE_EXCEEDED"
            halting.caught()
            postgres.run("pg_dump", "-U", "postgres", "-F", "c", "-f", str(dump), fleet.database)
            halting.go()
        one(call)
        refused = process("state", "disarm", "--config", configured(fleet), status=4)
        assert "was heard of" in refused.err
        fleet.member(1).stop()
        postgres.drop(fleet.database)
        postgres.create(fleet.database)
        postgres.run("pg_restore", "-U", "postgres", "-d", fleet.database, str(dump))
        assert fleet.rows("SELECT count(*) FROM operation WHERE state = 'queued'") == [(1,)]
        with postgres.admin(fleet.database) as admin:
            admin.execute("UPDATE controller SET heartbeat = heartbeat - 100")  # time has passed since the dump
        assert process("state", "disarm", "--config", configured(fleet), "--output", "json").tree == {"cancelled": 1}
        assert fleet.rows("SELECT count(*) FROM meta WHERE key LIKE 'attachments%'") == [(0,)]
        fleet.member(1).start()
        assert one(first).volume.uid == uid
        until(lambda: set(one.list_volumes()) == {"v", name}, "the scan: what came since is found on the storage")
        until(fleet.clean)


def test_a_rescan_is_a_controller_for_as_long_as_it_takes(fleet):
    with fleet.call(1) as one:
        one(create("v"))
        told = {}
        for _ in range(2):  # the one scan that c1 begins with may come in between and find it first
            fleet.rows("DELETE FROM volume RETURNING 1")
            words = ("--state-dir", str(fleet.base / "desk"), "--config", configured(fleet), "--output", "json")
            if (told := process("rescan", *words).tree) == {"p": 1}:
                break
        assert told == {"p": 1}
        assert set(one.list_volumes()) == {"v"}
        assert set(fleet.controllers()) == {"c1"}


def test_backup_and_restore_of_files_say_what_is_for_postgresql(fleet, tmp_path):
    for words in (("backup", str(tmp_path / "b")), ("restore", str(tmp_path / "b"))):
        (tmp_path / "b").write_text("")
        assert "pg_dump" in process(*words, "--config", configured(fleet), status=4).err
    plain = tmp_path / "plain.toml"
    plain.write_text("")
    for verb in ("disarm", "controllers"):
        assert "[database] url" in process("state", verb, "--config", str(plain), status=2).err


def test_an_operator_tells_that_a_machine_is_surely_off(postgres):
    """Its row says another machine, which nobody here can look at: without the word, a lapse of a minute would be waited for."""
    with Fleet(postgres, lease=60.0) as fleet:
        name = fresh()
        call = imported(fleet, name)
        with fleet.call(1, retries=False) as one, fleet.call(2) as two:
            with Halting(fleet[1], "qemu-img convert") as halting:
                try:
                    one.once(call, 2)
                except Refused as error:
                    assert error.code == "DEADLINE_EXCEEDED"
                halting.caught()
                with postgres.admin(fleet.database) as admin:
                    admin.execute("UPDATE controller SET machine = 'far away' WHERE name = 'c1'")
                fleet.member(1).kill9()
            began = time.monotonic()
            listed = process("state", "controllers", "--config", configured(fleet), "--output", "json").tree
            assert sorted(row["name"] for row in listed) == ["c1", "c2"] and not any(row["gone"] for row in listed)
            until(lambda: fleet.rows("SELECT 1 FROM controller WHERE name = 'c1' AND heartbeat < extract(epoch FROM now()) - 4"))
            assert fleet.rows(f"SELECT claim FROM operation WHERE target = '{volume_name(name)}'") == [(1,)]
            process("state", "gone", "c1", "--config", configured(fleet))
            assert two(call).volume.name == volume_name(name)
            assert time.monotonic() - began < 45
        assert process("state", "gone", "nobody", "--config", configured(fleet), status=3)
