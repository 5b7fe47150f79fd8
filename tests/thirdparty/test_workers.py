"""A worker that crashes, hangs, swells or starts slowly: the caller is told the truth in time, other pools do not notice, nothing stays."""

import os
import re
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire, refusal, refused
from tests.labs.third_party import installed
from tests.plugins.directory_rig import mounted
from tests.telemetry.observed import free_port
from volgate.v1 import operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

MIB = 1 << 20
NATIVE_SECONDS = 4.0
SILENT_SECONDS = 10.0


class Lab:
    """A gateway with an unruly pool and a good one."""

    def __init__(self, top: Path, server: Server, wire: Wire, port: int) -> None:
        self.top, self.server, self.wire, self.port = top, server, wire, port
        self.orders = top / "unruly.orders"

    def order(self, verb: str, words: str) -> None:
        written = self.top / "order"
        written.write_text(words)
        written.rename(self.orders / verb)

    def create(self, name: str, pool: str = "unruly", timeout: float = 60) -> volume_pb2.Volume:
        request = volume_pb2.CreateVolumeRequest(pool=f"pools/{pool}", volume_id=name, size_bytes=MIB, request_id=uuid.uuid4().hex)
        return self.wire.volumes.CreateVolume(request, timeout=timeout).volume

    def names(self) -> list[str]:
        listed = self.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool="pools/unruly"), timeout=30).volumes
        return [volume.name.rpartition("/")[2] for volume in listed]

    def pool(self) -> pool_pb2.Pool:
        return self.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/unruly"), timeout=30).pool

    def workers(self) -> list[int]:
        """The processes that serve the pool: they hold its lock, as the gateway does."""
        lock = str(self.server.state / "pool-locks/unruly.lock")
        assert self.server.process
        found = {int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/task/*/fd/*") if _target(path) == lock}
        return sorted(found - {self.server.process.pid})

    def hanging(self) -> list[int]:
        """Those of them with a thread that the kernel does not let go; their first thread may be gone already."""
        states = {
            pid: [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
            for pid in self.workers()
        }
        return [pid for pid, found in states.items() if "D" in found]

    def metric(self, name: str) -> float:
        """A counter of the unruly pool, as Prometheus reads it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        return sum(float(value) for value in re.findall(rf'^{name}_total{{[^}}]*pool="unruly"[^}}]*}} (\S+)$', page, re.MULTILINE))

    def settled(self) -> None:
        """Wait until no operation is under way."""
        unfinished = operation_pb2.ListOperationsRequest(unfinished_only=True)
        until(lambda: not self.wire.operations.ListOperations(unfinished, timeout=30).operations)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def until(holds: Callable[[], bool], seconds: float = 45.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    (tmp_path / "unruly.orders").mkdir()
    port = free_port()
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site", "unruly", "tests.thirdparty.unruly"))
    config = f"[limits]\nnative_timeout = {NATIVE_SECONDS}\ncheck_seconds = 0.5\nscan_seconds = 3600\n"
    config += f'[telemetry]\nprometheus_listen = "127.0.0.1:{port}"\n[hosts.lab]\nuri = "test:///default"\n'
    config += f'[pools.unruly]\nkind = "unruly"\npath = "{tmp_path}/unruly"\n[pools.good]\nkind = "directory"\npath = "{tmp_path}/good"\n'
    server = Server(tmp_path / "state", config=config).start(timeout=60)
    try:
        with Wire(server.address) as wire:
            yield Lab(tmp_path, server, wire, port)
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("how", ["segfault", "exhaust", "killed"])
@pytest.mark.parametrize("verb", ["create", "created"])
def test_a_worker_that_ends_in_a_call_is_replaced_and_the_call_made_again(lab, how, verb):
    lab.order(verb, how)
    assert lab.create("v").uid
    assert lab.names() == ["v"] and lab.pool().health == pool_pb2.POOL_HEALTH_OK
    assert lab.metric("volgate_worker_losses") == 1 and lab.metric("volgate_worker_starts") == 2
    assert len(lab.workers()) == 1


@pytest.mark.parametrize("how", ["stop", "hang"])
def test_a_worker_that_is_silent_is_replaced_and_the_call_made_again(lab, how):
    """Stopped whole, or with a native call that lets no other thread of it run."""
    lab.order("created", how)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lab.create, "v")
        until(lambda: not (lab.orders / "created").exists())
        began = time.monotonic()
        told = refused(
            lab.wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/unruly", volume_id="w", size_bytes=MIB), timeout=2
        )
        assert time.monotonic() - began < 2, "the server's answer, before the caller's deadline"
        assert (told.code, told.domain) == ("DEADLINE_EXCEEDED", "volgate") and told.metadata["operation"], told
        assert lab.create("beside", "good", timeout=2).uid
        assert running.result(60).uid
    lab.settled()
    assert lab.create("w").uid, "nothing had been begun of it: repeated, it is made"
    assert sorted(lab.names()) == ["v", "w"]
    until(lambda: len(lab.workers()) == 1)


def test_a_call_that_hangs_alone_is_ended_with_its_worker(lab):
    """The worker's other threads run, so it gives signs of life: the limit of time ends it."""
    lab.order("create", "sleep 3600")
    assert lab.create("v").uid
    assert lab.metric("volgate_worker_losses") == 1


def test_a_revert_that_moves_bytes_outlasts_every_limit_and_is_followed(lab):
    lab.create("v")
    cut = snapshot_pb2.CreateSnapshotRequest(volume="pools/unruly/volumes/v", snapshot_id="s")
    lab.wire.snapshots.CreateSnapshot(cut, timeout=60)
    lab.order("revert", f"sleep {NATIVE_SECONDS + 11}")
    revert = volume_pb2.RevertVolumeRequest(name="pools/unruly/volumes/v", snapshot="s", request_id=uuid.uuid4().hex)
    answer = lab.wire.volumes.RevertVolume(revert, timeout=60)
    assert not answer.HasField("volume") and answer.operation.state == operation_pb2.OPERATION_STATE_RUNNING
    lab.settled()
    assert lab.wire.volumes.RevertVolume(revert, timeout=60).volume.name == "pools/unruly/volumes/v"
    assert lab.metric("volgate_worker_losses") == 0


def test_what_writes_over_a_whole_volume_outlasts_every_limit(lab):
    """A volume that is wiped when it is made, grown and deleted."""
    lab.create("thin")
    for verb in ("create", "expand", "delete"):
        lab.order(verb, f"sleep {NATIVE_SECONDS + 3}")
    thick = {"provisioning": volume_pb2.PROVISIONING_THICK, "request_id": uuid.uuid4().hex}
    lab.wire.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/unruly", volume_id="v", size_bytes=MIB, **thick), timeout=60)
    lab.settled()
    name = "pools/unruly/volumes/v"
    lab.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=name, size_bytes=2 * MIB), timeout=60)
    lab.settled()
    assert lab.wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=name), timeout=30).volume.size_bytes == 2 * MIB
    lab.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=name), timeout=60)
    lab.settled()
    assert lab.names() == ["thin"] and not any(lab.orders.iterdir()) and lab.metric("volgate_worker_losses") == 0


def test_a_worker_that_returns_goes_on(lab):
    lab.order("created", "stop")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lab.create, "v")
        until(lambda: not (lab.orders / "created").exists())
        (pid,) = lab.workers()
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)
        assert running.result(20).uid
    assert lab.workers() == [pid] and lab.metric("volgate_worker_losses") == 0


def test_a_pool_that_cannot_be_opened_refuses_at_once_and_says_when_to_come_back(lab):
    lab.order("open", "segfault!")
    for pid in lab.workers():
        os.kill(pid, signal.SIGKILL)
    until(lambda: lab.pool().health == pool_pb2.POOL_HEALTH_DOWN)
    until(lambda: lab.metric("volgate_worker_losses") >= 3)
    began, said = time.monotonic(), []
    for number in range(20):
        request = volume_pb2.CreateVolumeRequest(pool="pools/unruly", volume_id=f"v{number}", size_bytes=MIB, validate_only=True)
        said.append(refused(lab.wire.volumes.CreateVolume, request, timeout=20))
    assert time.monotonic() - began < 10, "none waits for the worker"
    assert {(told.code, told.reason) for told in said} == {("UNAVAILABLE", "POOL_DOWN")}
    assert all(told.retry_after and told.retry_after > 0 for told in said)
    assert any("signal 11" in told.message for told in said)
    starts = lab.metric("volgate_worker_starts")
    assert lab.create("beside", "good", timeout=5).uid
    (lab.orders / "open").unlink()
    until(lambda: lab.pool().health == pool_pb2.POOL_HEALTH_OK)
    assert lab.create("v").uid and lab.metric("volgate_worker_starts") <= starts + 2
    lab.settled()


def test_a_worker_that_starts_slowly_keeps_its_callers_waiting_for_a_while_only(lab):
    lab.order("open", "sleep 12")
    for pid in lab.workers():
        os.kill(pid, signal.SIGKILL)
    request = volume_pb2.CreateVolumeRequest(pool="pools/unruly", volume_id="v", size_bytes=MIB, request_id=uuid.uuid4().hex)
    began = time.monotonic()
    told = refused(lab.wire.volumes.CreateVolume, request, timeout=9)
    assert time.monotonic() - began < 9 and told.domain == "volgate", told
    assert told.code in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED") and told.metadata.get("operation"), told
    assert lab.create("beside", "good", timeout=2).uid
    assert repeated(lab.wire.volumes.CreateVolume, request).volume.uid
    lab.settled()
    assert lab.names() == ["v"]


def repeated(call: Callable, request):
    """Make a call until the pool is up: as long as it is not, that is a true answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call(request, timeout=60)
        except grpc.RpcError as error:
            assert refusal(error).code in ("UNAVAILABLE", "ABORTED") and time.monotonic() < deadline, error
            time.sleep(0.2)


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], object]]]:
    """A file system beside the pool, and what freezes and thaws it."""
    with mounted(tmp_path / "fs.img", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        yield folder, lambda flag: subprocess.run(["fsfreeze", flag, folder], check=True)
        subprocess.run(["fsfreeze", "-u", folder], check=False, capture_output=True)


def test_what_a_worker_that_cannot_be_killed_is_at_stays_closed_until_it_is_gone(frozen, lab):
    """A system call of its storage does not return: killed, it stays. The others of its pool are served by a new worker meanwhile."""
    folder, switch = frozen
    kept = lab.create("kept")
    lab.create("other")
    late = folder / "late"
    late.touch()
    switch("-f")
    lab.order("relabel", f"write {late}")
    labels = {"order": "second"}
    first = volume_pb2.UpdateVolumeRequest(name=kept.name, labels={"order": "first"}, request_id=uuid.uuid4().hex)
    second = volume_pb2.UpdateVolumeRequest(name=kept.name, labels=labels, request_id=uuid.uuid4().hex)
    told = refused(lab.wire.volumes.UpdateVolume, first, timeout=NATIVE_SECONDS + 8)
    assert told.domain == "volgate" and told.metadata.get("operation"), told
    assert told.code in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"), told
    stuck = lab.hanging()
    assert len(stuck) == 1
    update = volume_pb2.UpdateVolumeRequest(name="pools/unruly/volumes/other", labels=labels)
    assert lab.wire.volumes.UpdateVolume(update, timeout=30).volume.labels == labels
    assert lab.create("fresh").uid and lab.create("beside", "good", timeout=2).uid
    again = refused(lab.wire.volumes.UpdateVolume, second, timeout=8)
    assert again.domain == "volgate" and again.code in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"), again
    assert Path(f"/proc/{stuck[0]}").exists() and late.stat().st_size == 0
    switch("-u")
    until(lambda: not Path(f"/proc/{stuck[0]}").exists())
    assert lab.wire.volumes.UpdateVolume(second, timeout=60).volume.labels == labels
    lab.settled()
    time.sleep(1)
    found = lab.wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=kept.name, refresh=True), timeout=30).volume
    assert found.labels == labels, "the later call has the last word, whatever became of the first"
    assert sorted(lab.names()) == ["fresh", "kept", "other"]
    until(lambda: len(lab.workers()) == 1)


def test_a_pool_is_not_touched_while_a_dead_gateways_worker_works_on_it(frozen, lab):
    folder, switch = frozen
    kept = lab.create("kept")
    (folder / "late").touch()
    switch("-f")
    lab.order("relabel", f"write {folder}/late")
    update = volume_pb2.UpdateVolumeRequest(name=kept.name, labels={"order": "first"}, request_id=uuid.uuid4().hex)
    refused(lab.wire.volumes.UpdateVolume, update, timeout=2)
    lab.server.kill9()
    (left,) = lab.workers()
    lab.server.start(timeout=60)
    until(lambda: f"process {left} (python" in lab.pool().problem)  # a busy machine says first that the pool is slow
    assert lab.pool().health == pool_pb2.POOL_HEALTH_DOWN
    assert lab.create("beside", "good", timeout=5).uid
    switch("-u")
    until(lambda: lab.pool().health == pool_pb2.POOL_HEALTH_OK)
    assert lab.wire.volumes.UpdateVolume(update, timeout=60).volume.labels == {"order": "first"}
    assert (folder / "late").read_bytes() in (b"", b"late"), "ordered once"
