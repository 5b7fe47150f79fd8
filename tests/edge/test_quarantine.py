"""A pool in quarantine is not touched: calls are refused, accepted operations wait, a detach is done, through a crash too."""

from __future__ import annotations

import os
import time

import pytest

from tests.edge.place import MIB, running
from tests.edge.wire import Wire, refused
from volgate.v1 import attachment_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

CONFIG = """
[limits]
scan_seconds = 2
check_seconds = 2
[hosts.lab]
uri = "test:///default"
[pools.main]
kind = "directory"
path = "{top}/main"
[pools.other]
kind = "directory"
path = "{top}/other"
"""


@pytest.fixture
def place():
    with running(CONFIG) as made:
        yield made


def quarantine(wire: Wire, reason: str = "", **more) -> pool_pb2.QuarantinePoolResponse:
    return wire.pools.QuarantinePool(pool_pb2.QuarantinePoolRequest(name="pools/main", reason=reason, **more), timeout=20)


class Traces:
    """What a look or a change would leave: an old time of reading becomes new at the first read, also with relatime."""

    def __init__(self, top) -> None:
        self._paths = [top / "main", *(top / "main").rglob("*")]
        for path in self._paths:
            os.utime(path, (0, path.stat().st_mtime))

    def now(self) -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_atime_ns, path.stat().st_ctime_ns) for path in self._paths}


def test_calls_that_need_the_storage_are_refused_and_the_others_are_answered(place):
    kept, wire = place.volume(), place.wire
    place.snapshot(kept)
    attach = attachment_pb2.AttachVolumeRequest(volume=kept.name, host="hosts/lab", domain="test", prepare_only=True)
    held = wire.attachments.AttachVolume(attach, timeout=30).attachment
    asked = {"volume_id": "again", "size_bytes": MIB, "request_id": "r1"}
    place.volume(MIB, **{key: value for key, value in asked.items() if key != "size_bytes"})
    found = quarantine(wire, "errors on sdb").pool
    assert (found.quarantine, found.health) == ("errors on sdb", pool_pb2.POOL_HEALTH_DOWN)
    assert found.problem.startswith("in quarantine: errors on sdb")
    requests = [
        (wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id="x", size_bytes=MIB)),
        (wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id="x", size_bytes=MIB, validate_only=True)),
        (wire.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=kept.name)),
        (wire.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=kept.name, refresh=True)),
        (wire.volumes.ExportVolume, volume_pb2.ExportVolumeRequest(name=f"{kept.name}/snapshots/s1")),
        (wire.snapshots.CreateSnapshot, snapshot_pb2.CreateSnapshotRequest(volume=kept.name, snapshot_id="s2")),
        (wire.attachments.AttachVolume, attach),
        (wire.attachments.ListPaths, attachment_pb2.ListPathsRequest(name=kept.name)),
    ]
    for call, request in requests:
        said = refused(call, request)
        assert (said.code, said.reason) == ("FAILED_PRECONDITION", "POOL_QUARANTINED"), request
        assert "errors on sdb" in said.message
        assert "volgate pool release main" in said.message
    assert wire.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/main", **asked), timeout=20).volume.name.endswith("again")
    assert wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=kept.name), timeout=20).volume.uid == kept.uid
    place.volume(pool="other")
    wire.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=held.name), timeout=30)
    assert not wire.attachments.ListAttachments(attachment_pb2.ListAttachmentsRequest(), timeout=20).attachments
    assert not quarantine(wire, release=True).pool.quarantine
    wire.snapshots.DeleteSnapshot(snapshot_pb2.DeleteSnapshotRequest(name=f"{kept.name}/snapshots/s1"), timeout=30)


def test_nothing_reads_or_writes_the_storage_not_even_a_scan_a_check_or_a_start(place):
    place.volume()
    quarantine(place.wire, "suspect")
    time.sleep(0.5)  # a check or a scan that ran in that moment ends
    traces = Traces(place.top)
    before = traces.now()
    time.sleep(2.5)
    place.server.kill9()
    place.server.start()
    with Wire(place.server.address) as wire:
        found = wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main"), timeout=20).pool
        assert (found.quarantine, found.health) == ("suspect", pool_pb2.POOL_HEALTH_DOWN)
        listed = wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool="pools/main"), timeout=20).volumes
        assert len(listed) == 1, "the index tells what it knew"
        time.sleep(2.5)
        assert traces.now() == before
        assert quarantine(wire, release=True).pool.health == pool_pb2.POOL_HEALTH_OK
        assert traces.now() != before, "these traces tell of a look"


def test_what_was_accepted_waits_for_the_release_and_goes_on(place):
    """An operation that is queued behind a read when the quarantine comes: it runs after the release, through a crash in between."""
    made, stream = place.held()
    late = place.wire.volumes.ExpandVolume.future(
        volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=64 * MIB, request_id="grow"), timeout=120
    )
    listed = operation_pb2.ListOperationsRequest(unfinished_only=True)
    while not (running_ := place.wire.operations.ListOperations(listed, timeout=20).operations):
        time.sleep(0.02)
    assert quarantine(place.wire, "suspect").operations == [running_[0].name]
    stream.cancel()
    time.sleep(0.5)
    assert [one.name for one in place.wire.operations.ListOperations(listed, timeout=20).operations] == [running_[0].name]
    late.cancel()
    place.server.kill9()
    place.server.start()
    with Wire(place.server.address) as wire:
        assert [one.name for one in wire.operations.ListOperations(listed, timeout=20).operations] == [running_[0].name]
        quarantine(wire, release=True)
        request = volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=64 * MIB, request_id="grow")
        assert wire.volumes.ExpandVolume(request, timeout=60).volume.size_bytes == 64 * MIB


def test_a_reason_or_a_release_is_needed_and_not_both(place):
    for request in ({}, {"reason": " "}, {"reason": "x", "release": True}):
        said = refused(place.wire.pools.QuarantinePool, pool_pb2.QuarantinePoolRequest(name="pools/main", **request))
        assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["reason"])
    assert not place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main"), timeout=20).pool.quarantine
