"""VolumeService's unary calls on the wire: what they do, and each documented error with its details."""

import uuid

import pytest

from tests.edge.place import MIB
from tests.edge.wire import refused
from volgate.v1 import operation_pb2, pool_pb2, volume_pb2
from volgate.v1.volume_pb2 import (
    AdoptVolumeRequest,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    ExpandVolumeRequest,
    GetVolumeRequest,
    ListVolumesRequest,
    RevertVolumeRequest,
    UpdateVolumeRequest,
)

RAW, QCOW2 = volume_pb2.VOLUME_FORMAT_RAW, volume_pb2.VOLUME_FORMAT_QCOW2


def get(place, name, **more):
    return place.wire.volumes.GetVolume(GetVolumeRequest(name=name, **more), timeout=30).volume


def folders(place):
    return sorted(entry.name for entry in (place.pool / "volumes").iterdir())


@pytest.mark.parametrize("kind", [RAW, QCOW2])
@pytest.mark.parametrize("provisioning", [volume_pb2.PROVISIONING_THIN, volume_pb2.PROVISIONING_THICK])
def test_a_volume_is_made_as_asked_and_read_back(place, kind, provisioning):
    made = place.volume(5 * MIB + 1, format=kind, provisioning=provisioning, labels={"team": "a", "k8s.io/claim": "b"})
    assert made.size_bytes == 5 * MIB + 4096, "rounded up to the grain"
    assert (made.format, made.provisioning, made.state) == (kind, provisioning, volume_pb2.VOLUME_STATE_READY)
    assert dict(made.labels) == {"team": "a", "k8s.io/claim": "b"}
    thick = provisioning == volume_pb2.PROVISIONING_THICK
    assert (made.allocated_bytes >= 5 * MIB) == thick
    for refresh in (False, True):
        found = get(place, made.name, refresh=refresh)
        assert found.uid == made.uid and found.size_bytes == made.size_bytes and found.created_at == made.created_at
    assert str(uuid.UUID(made.uid)) == made.uid


def test_the_answer_names_the_operation_that_did_it(place):
    request = CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB, request_id="mine-1")
    answer = place.wire.volumes.CreateVolume(request)
    operation = answer.operation
    assert (operation.method, operation.target, operation.uid) == ("CreateVolume", answer.volume.name, answer.volume.uid)
    assert operation.state == operation_pb2.OPERATION_STATE_DONE and operation.request_id == "mine-1"
    assert [(step.name, step.state) for step in operation.steps] == [("create", "done")]


def test_a_repeat_answers_the_same_and_a_conflicting_one_names_the_difference(place):
    first = place.volume(8 * MIB, format=RAW)
    name = first.name.rpartition("/")[2]
    assert place.volume(8 * MIB, format=RAW, volume_id=name).uid == first.uid
    said = refused(
        place.wire.volumes.CreateVolume, CreateVolumeRequest(pool="pools/main", volume_id=name, size_bytes=9 * MIB, format=QCOW2)
    )
    assert (said.code, said.reason) == ("ALREADY_EXISTS", "EXISTS_DIFFERENT")
    assert f"size_bytes is {8 * MIB}, asked {9 * MIB}" in said.message and "format is raw, asked qcow2" in said.message
    assert said.metadata["uid"] == first.uid


def test_a_request_id_belongs_to_one_body(place):
    name = place.name()
    place.volume(MIB, volume_id=name, request_id="once")
    again = CreateVolumeRequest(pool="pools/main", volume_id=name, size_bytes=2 * MIB, request_id="once")
    said = refused(place.wire.volumes.CreateVolume, again)
    assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", ["request_id"])


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"pool": "pools/nobody"}, "NOT_FOUND", "NOT_FOUND"),
        ({"source": "pools/main/volumes/nobody"}, "NOT_FOUND", "NOT_FOUND"),
        ({"source": "pools/shallow/volumes/other"}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"size_bytes": (1 << 50)}, "RESOURCE_EXHAUSTED", "OVERSUBSCRIBED"),
        ({"size_bytes": 0}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"format": volume_pb2.VOLUME_FORMAT_VMDK}, "INVALID_ARGUMENT", "INVALID_FIELD"),
    ],
    ids=str,
)
def test_creation_is_refused_with_its_reason_and_leaves_nothing(place, change, code, reason):
    before, name = folders(place), place.name()
    request = CreateVolumeRequest(**({"pool": "pools/main", "volume_id": name, "size_bytes": MIB} | change))
    said = refused(place.wire.volumes.CreateVolume, request)
    assert (said.code, said.reason) == (code, reason)
    assert folders(place) == before


def test_a_clone_from_a_volume_and_from_a_snapshot(place):
    origin = place.volume(8 * MIB)
    cut = place.snapshot(origin)
    for source in (origin.name, cut.name):
        clone = place.volume(0, source=source)
        assert (clone.size_bytes, clone.source) == (8 * MIB, source)
        assert place.volume(16 * MIB, source=source).size_bytes == 16 * MIB
    smaller = CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=4 * MIB, source=origin.name)
    said = refused(place.wire.volumes.CreateVolume, smaller)
    assert (said.code, said.reason, said.fields) == ("OUT_OF_RANGE", "OUT_OF_RANGE", ["size_bytes"])
    said = refused(place.wire.volumes.DeleteVolume, DeleteVolumeRequest(name=origin.name))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert {kind for kind, _, _ in said.holders} >= {"snapshot"} and all(subject for _, subject, _ in said.holders)


def test_a_missing_snapshot_as_source_is_not_found(place):
    origin = place.volume()
    request = CreateVolumeRequest(pool="pools/main", volume_id=place.name(), source=f"{origin.name}/snapshots/none")
    said = refused(place.wire.volumes.CreateVolume, request)
    assert (said.code, said.fields) == ("NOT_FOUND", ["source"])


def test_a_deleted_volume_is_gone_and_deleting_it_again_succeeds(place):
    made = place.volume()
    for _ in range(2):
        answer = place.wire.volumes.DeleteVolume(DeleteVolumeRequest(name=made.name))
        assert answer.operation.state == operation_pb2.OPERATION_STATE_DONE
    assert refused(place.wire.volumes.GetVolume, GetVolumeRequest(name=made.name)).code == "NOT_FOUND"
    assert refused(place.wire.volumes.GetVolume, GetVolumeRequest(name=made.name, refresh=True)).code == "NOT_FOUND"
    assert not [name for name in folders(place) if name.startswith(f"{made.name.rpartition('/')[2]}.")]


def test_a_stated_uid_protects_a_newer_volume_of_the_same_name(place):
    old = place.volume()
    name = old.name.rpartition("/")[2]
    place.wire.volumes.DeleteVolume(DeleteVolumeRequest(name=old.name))
    new = place.volume(volume_id=name)
    place.snapshot(new)
    calls = [
        (place.wire.volumes.DeleteVolume, DeleteVolumeRequest(name=new.name, uid=old.uid)),
        (place.wire.volumes.ExpandVolume, ExpandVolumeRequest(name=new.name, size_bytes=64 * MIB, uid=old.uid)),
        (place.wire.volumes.UpdateVolume, UpdateVolumeRequest(name=new.name, labels={"a": "b"}, uid=old.uid)),
        (place.wire.volumes.RevertVolume, RevertVolumeRequest(name=new.name, snapshot="s1", uid=old.uid, request_id=place.name("r"))),
    ]
    for call, request in calls:
        said = refused(call, request)
        assert (said.code, said.reason) == ("FAILED_PRECONDITION", "UID_MISMATCH"), request
        assert new.uid in said.message and old.uid in said.message
    found = get(place, new.name)
    assert (found.uid, found.size_bytes, dict(found.labels)) == (new.uid, new.size_bytes, {})


def test_a_volume_grows_and_never_shrinks(place):
    made = place.volume(4 * MIB)
    grow = ExpandVolumeRequest(name=made.name, size_bytes=6 * MIB + 1, uid=made.uid)
    assert place.wire.volumes.ExpandVolume(grow).volume.size_bytes == 6 * MIB + 4096
    less = ExpandVolumeRequest(name=made.name, size_bytes=MIB)
    assert place.wire.volumes.ExpandVolume(less).volume.size_bytes == 6 * MIB + 4096
    assert refused(place.wire.volumes.ExpandVolume, ExpandVolumeRequest(name=made.name, size_bytes=1 << 50)).reason == "OVERSUBSCRIBED"
    said = refused(place.wire.volumes.ExpandVolume, ExpandVolumeRequest(name="pools/main/volumes/nobody", size_bytes=MIB))
    assert (said.code, said.reason) == ("NOT_FOUND", "NOT_FOUND")
    said = refused(place.wire.volumes.ExpandVolume, ExpandVolumeRequest(name=made.name))
    assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["size_bytes"])


def test_labels_are_replaced_whole(place):
    made = place.volume(labels={"a": "1", "b": "2"})
    changed = place.wire.volumes.UpdateVolume(UpdateVolumeRequest(name=made.name, labels={"b": "ü", "c": ""})).volume
    assert dict(changed.labels) == {"b": "ü", "c": ""}
    assert dict(get(place, made.name, refresh=True).labels) == {"b": "ü", "c": ""}
    assert refused(place.wire.volumes.UpdateVolume, UpdateVolumeRequest(name="pools/main/volumes/nobody")).code == "NOT_FOUND"


def test_a_revert_sets_size_and_is_answered_from_the_record_when_repeated(place):
    made = place.volume(4 * MIB)
    place.snapshot(made, "before")
    place.wire.volumes.ExpandVolume(ExpandVolumeRequest(name=made.name, size_bytes=8 * MIB))
    request = RevertVolumeRequest(name=made.name, snapshot="before", request_id=place.name("r"))
    first = place.wire.volumes.RevertVolume(request)
    assert first.volume.size_bytes == 4 * MIB
    place.wire.volumes.ExpandVolume(ExpandVolumeRequest(name=made.name, size_bytes=16 * MIB))
    again = place.wire.volumes.RevertVolume(request)
    assert again.operation.name == first.operation.name
    assert get(place, made.name, refresh=True).size_bytes == 16 * MIB, "the repeat did nothing"


def test_a_revert_needs_a_request_id_and_a_snapshot_of_that_volume(place):
    made = place.volume()
    said = refused(place.wire.volumes.RevertVolume, RevertVolumeRequest(name=made.name, snapshot="s"))
    assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["request_id"])
    said = refused(place.wire.volumes.RevertVolume, RevertVolumeRequest(name=made.name, snapshot="none", request_id=place.name("r")))
    assert (said.code, said.fields) == ("NOT_FOUND", ["snapshot"])
    other = RevertVolumeRequest(name=made.name, snapshot="pools/main/volumes/other/snapshots/s", request_id=place.name("r"))
    said = refused(place.wire.volumes.RevertVolume, other)
    assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["snapshot"])


def test_a_foreign_file_is_adopted_with_its_data(place):
    data = b"kept" * (1 << 18)
    (place.pool / "guest.img").write_bytes(data)
    listed = {foreign.locator: foreign for foreign in place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main")).foreign}
    assert (listed["guest.img"].size_bytes, listed["guest.img"].format) == (MIB, "raw")
    name = place.name()
    request = AdoptVolumeRequest(pool="pools/main", locator="guest.img", volume_id=name, format=RAW, labels={"from": "before"})
    answer = place.wire.volumes.AdoptVolume(request, timeout=30)
    assert (answer.volume.size_bytes, dict(answer.volume.labels)) == (MIB, {"from": "before"})
    chunks = place.wire.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=answer.volume.name))
    assert b"".join(piece.chunk for piece in chunks) == data


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"locator": "nothing.img"}, "NOT_FOUND", "NOT_FOUND"),
        ({"pool": "pools/nobody"}, "NOT_FOUND", "NOT_FOUND"),
        ({"locator": "../outside.img"}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"locator": "volumes"}, "FAILED_PRECONDITION", "NOT_ADOPTABLE"),
        ({"locator": "odd.img"}, "FAILED_PRECONDITION", "NOT_ADOPTABLE"),
        ({"locator": "link.img"}, "FAILED_PRECONDITION", "NOT_ADOPTABLE"),
        ({"format": volume_pb2.VOLUME_FORMAT_VHDX}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"format": 0}, "INVALID_ARGUMENT", "INVALID_FIELD"),
    ],
    ids=str,
)
def test_what_cannot_be_adopted_stays_as_it_is(place, change, code, reason):
    (place.pool / "odd.img").write_bytes(b"x" * 1001)
    if not (place.pool / "link.img").is_symlink():
        (place.pool / "link.img").symlink_to("odd.img")
    request = AdoptVolumeRequest(**({"pool": "pools/main", "locator": "odd.img", "volume_id": place.name(), "format": RAW} | change))
    said = refused(place.wire.volumes.AdoptVolume, request)
    assert (said.code, said.reason) == (code, reason)
    assert (place.pool / "odd.img").read_bytes() == b"x" * 1001


def test_a_volume_that_nobody_made_is_not_found(place):
    for refresh in (False, True):
        said = refused(place.wire.volumes.GetVolume, GetVolumeRequest(name="pools/main/volumes/nobody", refresh=refresh))
        assert (said.code, said.reason) == ("NOT_FOUND", "NOT_FOUND")
    assert refused(place.wire.volumes.ListVolumes, ListVolumesRequest(pool="pools/nobody")).code == "NOT_FOUND"
