"""ListPaths on a cluster of three monitors and two copies: what each loss comes to, and who goes on through it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.attachments.world import MIB, World
from tests.labs.ceph import CephCluster
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from volgate.backend import PoolContext, VolumeId
from volgate.model import Format, Redundancy, VolumeSpec
from volgate.model import Path as IoPath
from volgate.operations.ways import redundancy
from volgate.v1 import attachment_pb2, volume_pb2
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.settings import CephSettings

OPERATION_SECONDS = 3.0
PATIENT = 90.0
DOWN_SECONDS = 30.0  # of a call: three requests to a cluster that does not answer, and what the host asks
START_SECONDS = 60.0
UID = "6d0f5d6e-2b0f-4a3c-9f6e-0c2f4b8d9a10"
WRITE = "yes {word} | dd of={device} bs=4096 count=1 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null"


@pytest.fixture(scope="module")
def cluster() -> Iterator[CephCluster]:
    began = time.monotonic()
    with CephCluster(store="bluestore", monitors=3, osds=3, copies=2) as running:
        assert time.monotonic() - began < START_SECONDS
        yield running


class Seen:
    """What ListPaths tells the client of an attachment."""

    def __init__(self, world: World, name: str) -> None:
        with world.server.client(timeout=DOWN_SECONDS) as client:
            answer = client.list_paths(name)
        self.whole = attachment_pb2.Redundancy.Name(answer.redundancy).removeprefix("REDUNDANCY_")
        self.errors = {(path.transport, path.initiator, path.device): path.last_error for path in answer.paths if path.last_error}

    def __str__(self) -> str:
        return f"{self.whole}: {self.errors}"


def wait_for(world: World, name: str, whole: str) -> Seen:
    """What is told once it comes to that."""
    deadline = time.monotonic() + PATIENT
    while (found := Seen(world, name)).whole != whole:
        assert time.monotonic() < deadline, str(found)
        time.sleep(0.1)
    return found


def test_each_loss_is_told_and_a_guest_goes_on(cluster: CephCluster, tmp_path: Path, libvirtd: PrivateLibvirtd, guest: Guest) -> None:
    table = {"kind": "ceph-rbd", **cluster.table(operation_seconds=OPERATION_SECONDS, connect_seconds=OPERATION_SECONDS)}
    text = "[pools.p]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
    world = World(tmp_path, tmp_path, libvirtd.uri, text)
    try:
        for name in ("a", "b"):
            world.create(name, form=volume_pb2.VOLUME_FORMAT_RAW)
        first = world.attach(guest, "pools/p/volumes/a", serial="a").attachment.name
        device = guest.wait_disk("a").device
        wait_for(world, first, "REDUNDANT")
        one_monitor_away(cluster, world, guest, first)
        one_osd_away(cluster, world, guest, first)
        no_quorum(cluster, world, guest, first)
        assert guest.run(f"dd if={device} bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1") == "quorum"
        world.detach(first, wait=60)
    finally:
        world.close()


def one_monitor_away(cluster: CephCluster, world: World, guest: Guest, first: str) -> None:
    """What is new goes through the others. While these elect a new leader, longer than a request here may wait, nobody answers."""
    cluster.kill("mon.a")
    told = wait_for(world, first, "DEGRADED")
    assert {key[1] for key in told.errors} == {"gateway", "local"}, told
    assert "refused" in told.errors["monitor", "gateway", "mon.a"]
    guest.run(WRITE.format(word="monitor", device=guest.wait_disk("a").device))
    second = world.attach(guest, "pools/p/volumes/b", serial="b").attachment.name
    guest.run(WRITE.format(word="new", device=guest.wait_disk("b").device))
    wait_for(world, second, "DEGRADED")  # a machine that is busy may have them elect once more
    world.detach(second, wait=60)
    cluster.restart("mon.a")
    wait_for(world, first, "REDUNDANT")


def one_osd_away(cluster: CephCluster, world: World, guest: Guest, first: str) -> None:
    """Half of what it held has one copy left."""
    cluster.kill("osd.0")
    told = wait_for(world, first, "DEGRADED")
    ((key, error),) = told.errors.items()
    assert key[0] == "pool" and "placement groups are active+undersized" in error
    guest.run(WRITE.format(word="osd", device=guest.wait_disk("a").device), timeout=PATIENT)
    cluster.restart("osd.0")
    wait_for(world, first, "REDUNDANT")


def no_quorum(cluster: CephCluster, world: World, guest: Guest, first: str) -> None:
    """Nobody can begin anything; what is open goes on with what it knows. Each answer is there in time."""
    for name in ("mon.a", "mon.b"):
        cluster.kill(name)
    told = wait_for(world, first, "DOWN")
    assert {key[2] for key in told.errors if key[:2] == ("monitor", "gateway")}, told
    began = time.monotonic()
    assert Seen(world, first).whole == "DOWN" and time.monotonic() - began < DOWN_SECONDS
    guest.run(WRITE.format(word="quorum", device=guest.wait_disk("a").device))
    for name in ("mon.a", "mon.b"):
        cluster.restart(name, wait=False)
    cluster.wait_whole()
    wait_for(world, first, "REDUNDANT")


def test_a_manager_that_died_and_a_monitor_that_hangs_leave_a_volume_degraded(cluster: CephCluster) -> None:
    for name in cluster.daemons:
        cluster.launch(name)  # where the test before this one failed, one is gone
    cluster.wait_whole()
    table = cluster.table(namespace=cluster.new_namespace(), operation_seconds=OPERATION_SECONDS, connect_seconds=OPERATION_SECONDS)
    backend = CephRbd(msgspec.convert(table, CephSettings), PoolContext("p", "here"))
    try:
        backend.create_volume(VolumeSpec("v", UID, 16 * MIB, Format.RAW))
        assert redundancy(seen(backend)) is Redundancy.REDUNDANT
        cluster.kill("mgr.x")
        (pool,) = [path for path in until_whole(backend, Redundancy.DEGRADED) if path.last_error]
        assert pool.transport == "pool" and "no manager answers" in pool.last_error
        cluster.restart("mgr.x")
        until_whole(backend, Redundancy.REDUNDANT)
        cluster.freeze("mon.a")  # the leader: until the others have elected a new one nobody answers
        (monitor,) = [path for path in until_whole(backend, Redundancy.DEGRADED) if path.last_error]
        assert monitor.device == "mon.a" and monitor.facts["reachable"] == "no"
        cluster.thaw("mon.a")
        until_whole(backend, Redundancy.REDUNDANT)
    finally:
        cluster.thaw("mon.a")
        backend.close()


def seen(backend: CephRbd) -> list[IoPath]:
    return list(backend.paths(VolumeId("v", UID)))


def until_whole(backend: CephRbd, whole: Redundancy) -> list[IoPath]:
    """The same of the plugin."""
    deadline = time.monotonic() + PATIENT
    while redundancy(found := seen(backend)) is not whole:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found
