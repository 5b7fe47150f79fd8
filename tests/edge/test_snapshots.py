"""SnapshotService on the wire."""

import pytest

from tests.edge.place import MIB
from tests.edge.wire import refused
from volgate.v1 import operation_pb2, volume_pb2
from volgate.v1.snapshot_pb2 import CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest


def test_a_snapshot_is_cut_listed_and_read(place):
    made = place.volume(4 * MIB)
    request = CreateSnapshotRequest(volume=made.name, snapshot_id="s1", labels={"kind": "nightly"}, volume_uid=made.uid)
    answer = place.wire.snapshots.CreateSnapshot(request)
    cut = answer.snapshot
    assert (cut.name, cut.volume_uid, cut.size_bytes, dict(cut.labels)) == (
        f"{made.name}/snapshots/s1",
        made.uid,
        4 * MIB,
        {"kind": "nightly"},
    )
    assert not cut.quiesced and answer.operation.state == operation_pb2.OPERATION_STATE_DONE
    assert place.wire.snapshots.GetSnapshot(GetSnapshotRequest(name=cut.name)).snapshot == cut
    assert list(place.wire.snapshots.ListSnapshots(ListSnapshotsRequest(parent=made.name)).snapshots) == [cut]


def test_a_snapshot_keeps_its_size_when_the_volume_grows(place):
    made = place.volume(4 * MIB)
    cut = place.snapshot(made)
    place.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=8 * MIB))
    assert place.wire.snapshots.GetSnapshot(GetSnapshotRequest(name=cut.name)).snapshot.size_bytes == 4 * MIB


def test_the_name_is_the_idempotency_key(place):
    made = place.volume()
    assert place.snapshot(made).uid == place.snapshot(made).uid


def test_a_deleted_snapshot_is_gone_and_deleting_it_again_succeeds(place):
    made = place.volume()
    cut = place.snapshot(made)
    for _ in range(2):
        place.wire.snapshots.DeleteSnapshot(DeleteSnapshotRequest(name=cut.name))
    assert refused(place.wire.snapshots.GetSnapshot, GetSnapshotRequest(name=cut.name)).code == "NOT_FOUND"
    place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=made.name))


def test_a_snapshot_with_a_clone_is_kept_and_the_clone_named(place):
    made = place.volume()
    cut = place.snapshot(made)
    clone = place.volume(0, source=cut.name)
    said = refused(place.wire.snapshots.DeleteSnapshot, DeleteSnapshotRequest(name=cut.name))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert any(clone.name.rpartition("/")[2] in subject for _, subject, _ in said.holders)
    place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=clone.name))
    place.wire.snapshots.DeleteSnapshot(DeleteSnapshotRequest(name=cut.name))


def test_a_stated_uid_must_match(place):
    made = place.volume()
    cut = place.snapshot(made)
    wrong = "00000000-0000-4000-8000-000000000000"
    said = refused(place.wire.snapshots.DeleteSnapshot, DeleteSnapshotRequest(name=cut.name, uid=wrong))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "UID_MISMATCH") and cut.uid in said.message
    said = refused(place.wire.snapshots.CreateSnapshot, CreateSnapshotRequest(volume=made.name, snapshot_id="s2", volume_uid=wrong))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "UID_MISMATCH")


def test_a_raw_volume_without_reflink_is_refused_naming_qcow2(place):
    made = place.volume(format=volume_pb2.VOLUME_FORMAT_RAW)
    said = refused(place.wire.snapshots.CreateSnapshot, CreateSnapshotRequest(volume=made.name, snapshot_id="s"))
    shares = any("FICLONE" in note for note in _notes(place))
    assert shares, "this file system cannot share blocks, as the pool says itself"
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "NEEDS_REFLINK") and "qcow2" in said.message


def _notes(place):
    from volgate.v1 import pool_pb2

    return place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main")).pool.notes


def test_a_detached_volume_has_no_guest_to_freeze(place):
    made = place.volume()
    said = refused(place.wire.snapshots.CreateSnapshot, CreateSnapshotRequest(volume=made.name, snapshot_id="s", quiesce=True))
    assert (said.code, said.fields) == ("FAILED_PRECONDITION", ["quiesce"])


def test_the_depth_of_a_pool_is_a_limit(place):
    made = place.volume(pool="shallow")
    for number in (1, 2):
        place.snapshot(made, f"s{number}")
    said = refused(place.wire.snapshots.CreateSnapshot, CreateSnapshotRequest(volume=made.name, snapshot_id="s3"))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "CHAIN_TOO_DEEP")
    listed = place.wire.snapshots.ListSnapshots(ListSnapshotsRequest(parent=made.name)).snapshots
    assert [cut.name.rpartition("/")[2] for cut in listed] == ["s1", "s2"]


@pytest.mark.parametrize(
    ("verb", "request_"),
    [
        ("CreateSnapshot", CreateSnapshotRequest(volume="pools/main/volumes/nobody", snapshot_id="s")),
        ("CreateSnapshot", CreateSnapshotRequest(volume="pools/nobody/volumes/a", snapshot_id="s")),
        ("DeleteSnapshot", DeleteSnapshotRequest(name="pools/nobody/volumes/a/snapshots/s")),
        ("GetSnapshot", GetSnapshotRequest(name="pools/main/volumes/nobody/snapshots/s")),
        ("ListSnapshots", ListSnapshotsRequest(parent="pools/nobody")),
        ("ListSnapshots", ListSnapshotsRequest(parent="pools/main/volumes/nobody")),
    ],
    ids=str,
)
def test_what_does_not_exist_is_not_found(place, verb, request_):
    said = refused(getattr(place.wire.snapshots, verb), request_)
    assert (said.code, said.reason) == ("NOT_FOUND", "NOT_FOUND")
