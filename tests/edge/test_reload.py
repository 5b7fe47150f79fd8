"""SIGHUP: pools come, change and go while the gateway runs; a configuration that makes no sense changes nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from tests.labs.domain import Guest
from volgate.v1 import attachment_pb2, pool_pb2, snapshot_pb2, volume_pb2

MIB = 1 << 20


class Live:
    """A gateway whose configuration changes."""

    def __init__(self, top: Path, uri: str) -> None:
        self.top = top
        self.head = f'[hosts.lab]\nuri = "{uri}"\n[limits]\ncheck_seconds = 0.5\nscan_seconds = 1\n'
        self.server = Server(top / "state", config=self.written({"main": ""})).start(timeout=60)
        self._stack = contextlib.ExitStack()
        self.wire = self._stack.enter_context(Wire(self.server.address))

    def close(self) -> None:
        self._stack.close()
        assert self.server.stop() == 0

    def written(self, pools: dict[str, str], head: str = "") -> str:
        """Name to further lines; each is a directory below the top, of kind `directory` if it does not say another."""
        text = self.head + head
        for name, more in pools.items():
            kind = "" if "kind" in more else f'kind = "directory"\npath = "{self.top}/{name}"\n'
            text += f"[pools.{name}]\n{kind}{more}\n"
        return text

    def reload(self, pools: dict[str, str], head: str = "", *, says: str = "configuration reloaded") -> None:
        """Change the file, tell the gateway, wait until it says what became of it."""
        assert self.server.config and self.server.process
        before = self.server.log.read_text().count(says)
        self.server.config.write_text(self.written(pools, head))
        os.kill(self.server.process.pid, signal.SIGHUP)
        until(lambda: self.server.log.read_text().count(says) > before)

    def pools(self) -> dict[str, pool_pb2.Pool]:
        listed = self.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=30).pools
        return {pool.name.partition("/")[2]: pool for pool in listed}

    def create(self, pool: str, name: str, **more: object) -> volume_pb2.Volume:
        request = volume_pb2.CreateVolumeRequest(pool=f"pools/{pool}", volume_id=name, size_bytes=MIB, **more)
        return self.wire.volumes.CreateVolume(request, timeout=30).volume

    def volumes(self) -> list[str]:
        return [volume.name for volume in self.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(), timeout=30).volumes]


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path, "test:///default")
    yield made
    made.close()


def test_a_pool_that_is_added_is_served_and_one_that_is_removed_is_not(live, tmp_path):
    kept = live.create("main", "kept")
    live.reload({"main": "", "more": "", "simulated": 'kind = "memory"'})
    assert {name: pool.health for name, pool in live.pools().items()} == dict.fromkeys(
        ("main", "more", "simulated"), pool_pb2.POOL_HEALTH_OK
    )
    for pool in ("more", "simulated"):
        live.create(pool, "v")
    cut = snapshot_pb2.CreateSnapshotRequest(volume="pools/simulated/volumes/v", snapshot_id="s")
    assert live.wire.snapshots.CreateSnapshot(cut, timeout=30).snapshot.uid
    live.reload({"main": ""})
    assert list(live.pools()) == ["main"] and live.volumes() == [kept.name]
    told = refused(live.wire.volumes.GetVolume, volume_pb2.GetVolumeRequest(name="pools/more/volumes/v"))
    assert told.code == "NOT_FOUND"
    assert len(list((tmp_path / "more/volumes").iterdir())) == 1, "what is on the storage stays"
    live.reload({"main": "", "more": ""})
    until(lambda: "pools/more/volumes/v" in live.volumes())


def test_a_setting_of_a_pool_takes_effect(live):
    live.create("main", "v")
    limit = live.pools()["main"].provisioned_limit_bytes
    live.reload({"main": "oversubscription = 0.5"})
    assert 0 < live.pools()["main"].provisioned_limit_bytes < limit
    assert live.volumes() == ["pools/main/volumes/v"] and live.create("main", "w").uid


@pytest.mark.parametrize(("pools", "head"), [
    ({"main": "", "more": "oversubskription = 2.0"}, ""),
    ({"main": "", "more": 'kind = "nothing"'}, ""),
    ({"main": "", "more": 'kind = "memory"\ncapacity_bites = 5'}, ""),
    ({"main": ""}, "[server\n"),
    ({"main": "", "MORE": ""}, ""),
])  # fmt: skip
def test_a_configuration_that_makes_no_sense_changes_nothing(live, pools, head):
    live.reload(pools, head, says="the configuration is not taken over")
    assert list(live.pools()) == ["main"] and live.create("main", "v").uid


def test_other_sections_are_said_to_wait_for_the_next_start(live):
    live.reload({"main": "", "more": ""}, "[exports]\nallowed_directories = []\n[server]\nstop_seconds = 3.0\n")
    assert "more" in live.pools()
    assert '"at_the_next_start": ["server"]' in live.server.log.read_text()


def test_a_removed_pool_that_is_attached_goes_when_it_is_detached(pool_dir: Path, guest: Guest):
    live = Live(pool_dir.parent, guest.libvirtd.uri)
    try:
        live.reload({"main": "", "pool": ""})
        volume = live.create("pool", "v")
        attach = attachment_pb2.AttachVolumeRequest(volume=volume.name, host="hosts/lab", domain=guest.domain.name())
        attached = live.wire.attachments.AttachVolume(attach, timeout=60).attachment
        live.reload({"main": ""})
        leaving = live.pools()["pool"]
        assert "no more in the configuration" in leaving.problem and attached.name in leaving.problem
        told = refused(live.wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/pool", volume_id="w", size_bytes=MIB))
        assert told.code == "FAILED_PRECONDITION" and "no more in the configuration" in told.message
        live.reload({"main": "", "pool": ""})
        assert live.pools()["pool"].problem == "" and live.create("pool", "w").uid, "it was thought better of"
        live.reload({"main": ""})
        detach = attachment_pb2.DetachVolumeRequest(name=attached.name, request_id=uuid.uuid4().hex)
        live.wire.attachments.DetachVolume(detach, timeout=60)
        until(lambda: list(live.pools()) == ["main"])
    finally:
        live.close()
        guest.detach_all()
