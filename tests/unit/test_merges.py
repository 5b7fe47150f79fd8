"""Merges that should have followed an operation and did not: begun later, once, and only where something can be merged."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import pytest

from volgate.backend import Overlays, SnapshotSpec, VolumeId
from volgate.model import DiskOptions, Format, Health
from volgate.names import SnapshotName, VolumeName
from volgate.operations import requests
from volgate.operations.fleet import Fleet
from volgate.operations.requests import Caller
from volgate.operations.runner import Runner
from volgate.operations.scan import Merges, scan_pool
from volgate.operations.world import World
from volgate.pools import Pools
from volgate.registry import Registry
from volgate.settings import load
from volgate.store import attachments, journal
from volgate.store.database import Database
from volgate.store.records import AttachmentRecord, AttachmentState, OperationState

MIB = 1 << 20
GATEWAY = Caller(principal="gateway")


class Place:
    """A world whose runner forgets what should follow: as if the gateway had died just behind every answer."""

    def __init__(self, folder) -> None:
        config = folder / "volgate.toml"
        config.write_text(f'[pools.p]\nkind = "directory"\npath = "{folder}/pool"\n[hosts.here]\nuri = "test:///default"\n')
        settings = load(config, folder / "state")
        settings.state_dir.mkdir()
        self.registry = Registry()
        pools = Pools(self.registry, settings.pools, "an-instance", settings.limits.native_timeout)
        pools.check()
        self.world = World(settings, self.registry, Database(settings.state_dir / "volgate.db"), pools, Fleet({}))
        self.world.attachments_known.add("p")
        self.runner = Runner(self.world)
        self.pool = pools.get("p")

    def do(self, request) -> object:
        return self.runner.submit(request, Caller()).future.result(30)

    def layered(self, name: str) -> VolumeName:
        """A volume whose one snapshot goes, with the merge that should follow left undone: two layers remain."""
        made = self.do(requests.CreateVolume(pool="p", volume=name, size=MIB, format=Format.QCOW2))
        self.do(requests.CreateSnapshot(SnapshotName("p", name, "s")))
        assert self.depth(name) == 1
        self.do(requests.DeleteSnapshot(SnapshotName("p", name, "s")))
        assert self.depth(name) == 1 and made.volume.depth == 0
        return VolumeName("p", name)

    def depth(self, name: str) -> int:
        return self.pool.backend().get_volume(name).depth

    def merges(self) -> list[str]:
        """What was merged, or is about to be."""
        with self.world.database.read() as connection:
            found = journal.page(connection, None, 1000, only_unfinished=False)
        return sorted(record.target for record in found if record.method == "CollapseLayers")

    def rest(self) -> None:
        deadline = time.monotonic() + 20
        while self.runner.jobs.unfinished():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def attach(self, name: VolumeName) -> AttachmentRecord:
        volume = self.pool.backend().get_volume(name.volume)
        record = AttachmentRecord(
            str(uuid.uuid4()),
            "p",
            name.volume,
            volume.uid,
            "here",
            str(uuid.uuid4()),
            "guest",
            AttachmentState.ATTACHED,
            DiskOptions(),
            "a",
            "s",
        )
        self.world.database.write(lambda commit: attachments.put(commit, record))
        return record

    def close(self) -> None:
        self.runner.stop(5)
        self.world.pools.close()
        self.world.database.close()
        self.registry.close()


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


def test_what_a_dead_gateway_did_not_begin_is_begun_once(place):
    name, other = place.layered("a"), place.layered("b")
    merges = Merges(place.world, place.runner)
    assert merges.resume() == 2
    place.rest()
    assert (place.depth("a"), place.depth("b")) == (0, 0)
    assert merges.resume() == 0
    assert Merges(place.world, place.runner).resume() == 0, "a later start finds them done"
    assert place.merges() == [str(name), str(other)]
    with place.world.database.read() as connection:
        assert {record.state for record in journal.page(connection, None, 100, only_unfinished=False)} == {OperationState.DONE}


def test_a_volume_without_spare_layers_is_let_alone(place):
    place.do(requests.CreateVolume(pool="p", volume="plain", size=MIB, format=Format.QCOW2))
    place.do(requests.CreateSnapshot(SnapshotName("p", "plain", "s")))
    place.do(requests.DeleteSnapshot(SnapshotName("p", "plain", "nothing")))
    place.do(requests.DeleteVolume(place.layered("gone")))
    assert Merges(place.world, place.runner).resume() == 1, "the snapshot's layer may be merged for all that the journal knows"
    place.rest()
    assert place.depth("plain") == 1, "and is kept, for the snapshot needs it"


def test_an_attached_volume_is_merged_by_its_detach_and_not_before(place):
    name = place.layered("a")
    record = place.attach(name)
    merges = Merges(place.world, place.runner)
    assert (merges.resume(), merges.resume()) == (0, 0)
    place.world.database.write(lambda commit: attachments.forget(commit, record.id))
    ended = replace(_done(place), id=uuid.uuid4().hex, method="DetachVolume", target=str(name), finished_at=time.time())
    place.world.database.write(lambda commit: journal.begin(commit, ended))
    assert merges.resume() == 1
    place.rest()
    assert place.depth("a") == 0


def test_a_pool_that_is_down_is_merged_when_it_is_back(place):
    place.layered("a")
    merges = Merges(place.world, place.runner)
    place.pool.health = Health.DOWN
    assert (merges.resume(), merges.resume(), place.merges()) == (0, 0, [])
    place.pool.health = Health.OK
    assert merges.resume() == 1
    place.rest()
    assert place.depth("a") == 0


def test_a_layer_that_another_made_is_not_taken_for_a_lost_merge(place):
    """Only what the journal names is looked at: a start does not read every volume of every pool."""
    place.do(requests.CreateVolume(pool="p", volume="v", size=MIB, format=Format.QCOW2))
    backend = place.pool.facet(Overlays)
    uid = backend.get_volume("v").uid
    backend.create_snapshot(VolumeId("v", uid), SnapshotSpec("s", str(uuid.uuid4())))
    scan_pool(place.world, place.pool, place.runner)
    assert Merges(place.world, place.runner).resume() == 0


def _done(place):
    with place.world.database.read() as connection:
        return journal.page(connection, None, 1, only_unfinished=False)[0]
