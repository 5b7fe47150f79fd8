"""A memory pool below a real gateway: its worker dies, hangs and comes back, its array lives on or is missed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.plugins.memory_rig import MIB, Array, gone, until
from volgate.backend import PoolContext
from volgate.v1 import attachment_pb2, pool_pb2, volume_pb2
from volgate_client import Client
from volgate_client.errors import NotFound, OutOfSpace, Precondition
from volgate_plugins.memory import own

RAW = volume_pb2.VOLUME_FORMAT_RAW
LIMITS = "[limits]\ncheck_seconds = 0.5\nscan_seconds = 3600\n"
VOLUME, SNAPSHOT = "pools/sim/volumes/a", "pools/sim/volumes/a/snapshots/s"


@pytest.fixture
def array(tmp_path):
    made = Array(tmp_path / "array")
    yield made
    made.stop()
    assert "Traceback" not in made.said()


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(table: str, uri: str = "test:///default") -> Server:
        config = f'{LIMITS}[hosts.lab]\nuri = "{uri}"\n[pools.sim]\nkind = "memory"\n{table}'
        servers.append(Server(tmp_path / f"state{len(servers)}", config=config).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def client(array, serve):
    with serve(f'socket = "{array.socket}"\n').client() as opened:
        yield opened


def health(client: Client) -> str:
    return pool_pb2.PoolHealth.Name(client.get_pool("pools/sim").health).removeprefix("POOL_HEALTH_")


def workers(server: Server) -> list[int]:
    """The processes that serve the pool."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"volgate_plugins.memory" in words and server.process.pid in ancestors(int(folder.name)):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def own_socket(server: Server) -> Path:
    instance = (server.state / "instance").read_text().strip()
    return Path(own.place(PoolContext("sim", instance)))


def test_a_volume_s_whole_life(client, array, tmp_path):
    made = client.create_volume("pools/sim", "a", size_bytes=MIB, labels={"k": "v"})
    assert (made.size_bytes, made.format) == (MIB, RAW)
    file = next(array.root.glob("volumes/a.*/0000.raw"))
    file.write_bytes(b"one" + bytes(MIB - 3))
    client.create_snapshot(VOLUME, "s")
    file.write_bytes(b"two" + bytes(MIB - 3))
    client.create_volume("pools/sim", "b", source=SNAPSHOT, size_bytes=2 * MIB)
    client.create_volume("pools/sim", "c", source=VOLUME)
    assert next(array.root.glob("volumes/b.*/*.raw")).read_bytes()[:3] == b"one"
    assert next(array.root.glob("volumes/c.*/*.raw")).read_bytes()[:3] == b"two"
    with pytest.raises(Precondition) as caught:
        client.delete_snapshot(SNAPSHOT)
    assert (caught.value.reason, [holder.name for holder in caught.value.holders]) == ("IN_USE", ["b"])
    client.revert_volume(VOLUME, SNAPSHOT)
    assert client.expand_volume(VOLUME, 3 * MIB).size_bytes == 3 * MIB
    assert dict(client.update_volume(VOLUME, {"new": "label"}).labels) == {"new": "label"}
    client.export_file(volume_pb2.ExportVolumeRequest(name=VOLUME, format=RAW), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"one" + bytes(3 * MIB - 3)
    header = volume_pb2.ImportHeader(pool="pools/sim", volume_id="d", source_format=RAW)
    assert client.import_file(header, tmp_path / "out").size_bytes == 3 * MIB
    assert next(array.root.glob("volumes/d.*/*.raw")).read_bytes()[:3] == b"one"
    (array.root / "old").write_bytes(bytes(MIB))
    assert [found.locator for found in client.list_foreign("pools/sim")] == ["old"]
    client.adopt_volume("pools/sim", "old", "e", "raw")
    assert [volume.name[-1] for volume in client.list_volumes("pools/sim")] == list("abcde")
    for name in "bcde":
        client.delete_volume(f"pools/sim/volumes/{name}")
    client.delete_snapshot(SNAPSHOT)
    client.delete_volume(VOLUME)
    assert array.objects() == set()
    pool = client.get_pool("pools/sim")
    assert (pool.kind, pool.provisioned_bytes, pool.online_snapshots) == ("memory", 0, "")


def test_a_guest_writes_to_its_disk(default_guest, serve, tmp_path):
    with serve("accept_loss = true\n", default_guest.libvirtd.uri).client() as client:
        client.create_volume("pools/sim", "a", size_bytes=16 * MIB)
        attached = client.attach_volume(VOLUME, default_guest.name, options=attachment_pb2.DiskOptions(serial="data"))
        try:
            device = default_guest.wait_disk("data").device
            default_guest.run(f"printf guest | dd of={device} bs=512 conv=sync oflag=direct")
            with pytest.raises(Precondition) as caught:
                client.create_snapshot(VOLUME, "s")
            assert caught.value.reason == "NEEDS_REFLINK"
            assert len(client.list_paths(attached.name).paths) >= 2
        finally:
            client.detach_volume(attached.name)
        client.export_file(volume_pb2.ExportVolumeRequest(name=VOLUME, format=RAW), tmp_path / "out")
        assert (tmp_path / "out").read_bytes()[:5] == b"guest"
        client.delete_volume(VOLUME)


def test_a_worker_killed_amid_a_creation(array, serve):
    server = serve(f'socket = "{array.socket}"\n')
    with server.client() as client, ThreadPoolExecutor(1) as thread:
        client.create_volume("pools/sim", "before", size_bytes=MIB)
        array.fault("hang", "create_volume", count=1)
        making = thread.submit(client.create_volume, "pools/sim", "a", size_bytes=MIB)
        until(lambda: array.status().faults == [])
        (worker,) = workers(server)
        os.kill(worker, signal.SIGKILL)
        made = making.result(60)
        array.ask("release", int, verb="*")
        assert next(volume.uid for volume in client.list_volumes("pools/sim")) == made.uid
        assert len(list(array.root.glob("volumes/*"))) == 2
        assert workers(server) != [worker]


@pytest.mark.parametrize("effect", ["crash", "lose"])
@pytest.mark.parametrize("verb", ["create_volume", "create_snapshot", "expand_volume", "revert_volume", "delete_snapshot", "delete_volume"])
def test_a_call_whose_answer_is_lost_is_done_once(array, client, verb, effect):
    array.fault(effect, verb, after=effect == "crash", count=1)
    made = client.create_volume("pools/sim", "a", size_bytes=MIB)
    cut = client.create_snapshot(VOLUME, "s")
    assert client.expand_volume(VOLUME, 2 * MIB).size_bytes == 2 * MIB
    assert client.revert_volume(VOLUME, SNAPSHOT).size_bytes == MIB
    assert (client.get_volume(VOLUME, refresh=True).uid, client.get_snapshot(SNAPSHOT).uid) == (made.uid, cut.uid)
    client.delete_snapshot(SNAPSHOT)
    client.delete_volume(VOLUME)
    assert array.status().faults == [] and array.objects() == set()
    assert not list(client.list_operations(unfinished_only=True))


def test_a_gateway_that_was_killed_finds_the_volumes_of_an_array_that_lives_on(array, serve):
    server = serve(f'socket = "{array.socket}"\n')
    with server.client() as client:
        made = client.create_volume("pools/sim", "a", size_bytes=MIB)
    server.kill9()
    server.start()
    with server.client() as client:
        assert client.get_volume(VOLUME, refresh=True).uid == made.uid
        assert health(client) == "OK"


def test_faults_of_the_table_reach_the_caller_with_their_reason(array, serve):
    fault = '{ effect = "error", verb = "create_volume", error = "OutOfSpace", reason = "QUOTA_EXCEEDED", count = 1 }'
    with serve(f'socket = "{array.socket}"\nfaults = [{fault}]\n').client() as client:
        with pytest.raises(OutOfSpace) as caught:
            client.create_volume("pools/sim", "a", size_bytes=MIB)
        assert caught.value.reason == "QUOTA_EXCEEDED"
        client.create_volume("pools/sim", "a", size_bytes=MIB)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('fault = ["x"]', "did you mean 'faults'"),
        ('faults = [{ effect = "explode" }]', "explode"),
        ('faults = [{ efect = "lose" }]', "efect"),
    ],
)
def test_a_table_with_a_mistake_is_refused_at_the_start(serve, table, named):
    with pytest.raises(RuntimeError, match="configuration") as caught:
        serve(table)
    assert named in str(caught.value)


def test_a_pool_whose_array_ended_with_volumes_is_down_and_says_why(array, client):
    client.create_volume("pools/sim", "a", size_bytes=MIB)
    array.kill9()
    array.start()
    until(lambda: health(client) == "DOWN")
    assert "ended and took them with it" in client.get_pool("pools/sim").problem
    assert [volume.name for volume in client.list_volumes("pools/sim")] == [VOLUME], "it still lists"
    array.ask("accept_loss", bool)
    until(lambda: health(client) == "OK")
    with pytest.raises(NotFound):
        client.get_volume(VOLUME, refresh=True)


def test_failed_ports_show_in_the_pool_s_health(array, client):
    for port, expected in (("a", "DEGRADED"), ("b", "DOWN")):
        array.ask("fail_port", name=port, problem="cable pulled")
        until(lambda expected=expected: health(client) == expected)
        assert "cable pulled" in client.get_pool("pools/sim").problem


def test_an_own_array_outlives_a_worker_and_ends_with_its_gateway(serve):
    server = serve(f"capacity_bytes = {64 * MIB}\n")
    path = own_socket(server)
    array = Array.of(path)
    with server.client() as client:
        made = client.create_volume("pools/sim", "a", size_bytes=MIB)
        first = array.status()
        assert (first.owner, first.volumes) == (server.process.pid, 1)
        for worker in workers(server):
            os.kill(worker, signal.SIGKILL)
        assert client.get_volume(VOLUME, refresh=True).uid == made.uid
        assert array.status().array == first.array
        assert client.get_pool("pools/sim").total_bytes == 64 * MIB
    server.kill9()
    until(lambda: gone(first.pid))
    assert not path.exists() and not Path(first.root).exists()
    server.start()
    with server.client() as client:
        assert health(client) == "DOWN"
        assert "ended and took them with it" in client.get_pool("pools/sim").problem
        Array.of(path).ask("accept_loss", bool)
        until(lambda: health(client) == "OK")
        second = array.status()
    assert server.stop() == 0
    until(lambda: gone(second.pid))
    assert not list(path.parent.glob(f"{path.name}*")) and not Path(second.root).exists()
