"""The journal's texts and ends, on a real database and a real pool: no secret is kept, and nothing after an answer takes it back."""

import contextlib
import secrets
import time
import types

import pytest

from volgate.backend import BackendType, hookimpl
from volgate.errors import Busy, InDoubt, Precondition
from volgate.model import Format
from volgate.operations import requests
from volgate.operations.fleet import Fleet
from volgate.operations.requests import Caller
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import Pools
from volgate.registry import Registry
from volgate.secret import Secret
from volgate.settings import load
from volgate.store import journal
from volgate.store.database import Database
from volgate.store.records import OperationState
from volgate_plugins.directory import Directory, DirectorySettings

MIB = 1 << 20
CANARY = f"canary-{secrets.token_hex(12)}"
SECRET = Secret(CANARY)


class Leaky(Directory):
    """A directory pool that tells its secret in its errors."""

    def create_volume(self, spec):
        if spec.name == "failed":
            raise Precondition(f"login with {SECRET.reveal()} was refused")
        if spec.name == "doubtful":
            raise InDoubt(f"login with {SECRET.reveal()} was cut off")
        return super().create_volume(spec)


@hookimpl
def volgate_backends():
    return [BackendType(kind="leaky", settings=DirectorySettings, open=Leaky.open, summary="leaks", in_threads=True)]


@pytest.fixture
def world(tmp_path):
    config = tmp_path / "volgate.toml"
    config.write_text(f'[pools.p]\nkind = "leaky"\npath = "{tmp_path}/pool"\n[hosts.here]\nuri = "test:///default"\n')
    settings = load(config, tmp_path / "state")
    settings.state_dir.mkdir()
    registry = Registry(extra={"leaky": types.SimpleNamespace(volgate_backends=volgate_backends)})
    database = Database(settings.state_dir / "volgate.db")
    pools = Pools(registry, settings.pools, "an-instance", settings.limits.native_timeout)
    pools.check()
    made = World(settings, registry, database, pools, Fleet({}))
    made.attachments_known.add("p")
    yield made
    pools.close()
    database.close()
    registry.close()


@contextlib.contextmanager
def running(world, after=None):
    runner = Runner(world, after)
    yield runner
    runner.stop(5)


def creation(name):
    return requests.CreateVolume(pool="p", volume=name, size=MIB, format=Format.RAW)


def recorded(world, operation):
    with world.database.read() as connection:
        return journal.find(connection, operation)


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("failed", OperationState.FAILED, "login with *** was refused"),
        ("doubtful", OperationState.IN_DOUBT, "login with *** was cut off"),
    ],
)
def test_no_secret_is_kept_in_the_database(world, name, state, said):
    with running(world) as runner:
        ticket = runner.submit(creation(name), Caller())
        with pytest.raises((Precondition, InDoubt)):
            ticket.future.result(30)
        record = recorded(world, ticket.operation)
        assert (record.state, record.error_message) == (state, said)
    files = list(world.settings.state_dir.iterdir())
    assert any(said.encode() in file.read_bytes() for file in files), "the message itself is on the disk"
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []


def test_an_operation_in_doubt_is_counted_until_it_ends(world, monkeypatch):
    monkeypatch.setattr("volgate.operations.runner._TRIES", ())
    with running(world) as runner:
        assert (runner.jobs.unfinished(), runner.jobs.doubtful(), runner.jobs.oldest()) == (0, 0, 0.0)
        ticket = runner.submit(creation("doubtful"), Caller())
        with pytest.raises(InDoubt):
            ticket.future.result(30)
        assert (runner.jobs.unfinished(), runner.jobs.doubtful()) == (1, 1)
        assert 0 < runner.jobs.oldest() < 30
        monkeypatch.setattr(Leaky, "create_volume", Directory.create_volume)
        again = runner.submit(creation("doubtful"), Caller())
        assert again.future.result(30).volume.name == "doubtful"
        deadline = time.monotonic() + 10
        while runner.jobs.unfinished() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (runner.jobs.unfinished(), runner.jobs.doubtful(), runner.jobs.oldest()) == (0, 0, 0.0)


def test_whoever_waits_for_an_operation_in_doubt_is_told_so_and_may_repeat_the_call(world, monkeypatch):
    monkeypatch.setattr("volgate.operations.runner._TRIES", ())
    monkeypatch.setattr("volgate.operations.runner._DOUBT_SECONDS", 0.05)
    monkeypatch.setattr("volgate.operations.runner._PATIENT_SECONDS", 0.2)
    with running(world) as runner:
        doubtful = runner.submit(creation("doubtful"), Caller(request_id="first"))
        for _ in range(2):
            waiting = runner.submit(creation("doubtful"), Caller(request_id="second"))
            with pytest.raises(InDoubt, match=f"it waits for operations/{doubtful.operation}: ") as told:
                waiting.future.result(30)
            assert told.value.operation == f"operations/{waiting.operation}" != f"operations/{doubtful.operation}"
        last = runner.submit(creation("doubtful"), Caller(request_id="second"))
        monkeypatch.setattr(Leaky, "create_volume", Directory.create_volume)
        assert last.future.result(30).volume.name == "doubtful" and last.operation == waiting.operation


@pytest.mark.parametrize("error", [Busy("4096 operations are queued"), RuntimeError("a bug")], ids=["busy", "bug"])
def test_what_fails_after_an_operation_does_not_undo_it(world, error):
    asked = []

    def after(request):
        asked.append(request)
        raise error

    with running(world, after) as runner:
        ticket = runner.submit(creation("v"), Caller())
        assert ticket.future.result(30).volume.name == "v"
        deadline = time.monotonic() + 10
        while (not asked or any(lane.running for lane in runner.lanes.all)) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert asked
    record = recorded(world, ticket.operation)
    assert (record.state, record.error_message) == (OperationState.DONE, "")
    assert world.pools.get("p").backend().get_volume("v").size == MIB
