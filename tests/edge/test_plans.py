"""validate_only: every mutation answers with what it would do and changes nothing."""

import pytest

from tests.edge import fingerprint
from tests.edge.place import MIB
from tests.edge.wire import refused
from volgate.v1 import attachment_pb2, snapshot_pb2, volume_pb2


@pytest.fixture(scope="module")
def scene(place):
    """A volume with a snapshot that has a clone, a plain one, and a foreign file."""
    held = place.volume(8 * MIB, volume_id="held")
    cut = place.snapshot(held)
    place.volume(0, volume_id="child", source=cut.name)
    place.volume(4 * MIB, volume_id="thick", format=volume_pb2.VOLUME_FORMAT_RAW, provisioning=volume_pb2.PROVISIONING_THICK)
    (place.pool / "foreign.img").write_bytes(bytes(MIB))
    return place


V, S, A = volume_pb2, snapshot_pb2, attachment_pb2
NOBODY = "attachments/00000000-0000-5000-8000-000000000000"
PLANS = [
    ("volumes", V.CreateVolumeRequest(pool="pools/main", volume_id="new", size_bytes=MIB), ["create"], 0, set()),
    (
        "volumes",
        V.CreateVolumeRequest(pool="pools/main", volume_id="new", size_bytes=MIB, provisioning=V.PROVISIONING_THICK),
        ["create"],
        MIB,
        set(),
    ),
    (
        "volumes",
        V.CreateVolumeRequest(pool="pools/main", volume_id="new", source="pools/main/volumes/thick"),
        ["copy the source"],
        4 * MIB,
        set(),
    ),
    ("volumes", V.CreateVolumeRequest(pool="pools/main", volume_id="held", size_bytes=8 * MIB), ["return the existing volume"], 0, set()),
    (
        "volumes",
        V.DeleteVolumeRequest(name="pools/main/volumes/held"),
        ["delete"],
        0,
        {"pools/main/volumes/held/snapshots/s1", "pools/main/volumes/child"},
    ),
    ("volumes", V.DeleteVolumeRequest(name="pools/main/volumes/nobody"), [], 0, set()),
    ("volumes", V.ExpandVolumeRequest(name="pools/main/volumes/thick", size_bytes=6 * MIB), ["storage"], 2 * MIB, set()),
    ("volumes", V.ExpandVolumeRequest(name="pools/main/volumes/thick", size_bytes=MIB), [], 0, set()),
    ("volumes", V.UpdateVolumeRequest(name="pools/main/volumes/held", labels={"a": "b"}), ["relabel"], 0, set()),
    ("volumes", V.RevertVolumeRequest(name="pools/main/volumes/held", snapshot="s1"), ["revert"], 0, set()),
    (
        "volumes",
        V.AdoptVolumeRequest(pool="pools/main", locator="foreign.img", volume_id="new", format=V.VOLUME_FORMAT_RAW),
        ["adopt"],
        0,
        set(),
    ),
    ("snapshots", S.CreateSnapshotRequest(volume="pools/main/volumes/held", snapshot_id="s2"), ["cut"], 0, set()),
    (
        "snapshots",
        S.DeleteSnapshotRequest(name="pools/main/volumes/held/snapshots/s1"),
        ["delete"],
        0,
        {"pools/main/volumes/child"},
    ),
    ("snapshots", S.DeleteSnapshotRequest(name="pools/main/volumes/held/snapshots/none"), [], 0, set()),
    (
        "attachments",
        A.AttachVolumeRequest(volume="pools/main/volumes/held", host="hosts/lab", domain="test"),
        ["connection", "attach"],
        0,
        set(),
    ),
    (
        "attachments",
        A.AttachVolumeRequest(volume="pools/main/volumes/held", host="hosts/lab", domain="test", prepare_only=True),
        ["connection", "prepare"],
        0,
        set(),
    ),
    ("attachments", A.DetachVolumeRequest(name=NOBODY), [], 0, set()),
]


def call_of(place, service, request):
    verb = type(request).__name__.removesuffix("Request")
    return getattr(getattr(place.wire, service), verb)


def test_every_mutation_that_takes_validate_only_is_here():
    taking = {
        message.name
        for file in (volume_pb2, snapshot_pb2, attachment_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
        if "validate_only" in message.fields_by_name
    }
    elsewhere = {"CreateSnapshotGroupRequest"}  # test_groups.py: this pool cuts none
    assert taking == {type(request).__name__ for _, request, *_ in PLANS} | elsewhere


@pytest.mark.parametrize(("service", "request_", "steps", "space", "blockers"), PLANS, ids=lambda value: type(value).__name__)
def test_a_plan_tells_steps_space_and_blockers_and_changes_nothing(scene, service, request_, steps, space, blockers):
    before = fingerprint.of_pool(scene.pool), fingerprint.of_database(scene.state)
    asked = type(request_)()
    asked.CopyFrom(request_)
    asked.validate_only = True
    answer = call_of(scene, service, asked)(asked, timeout=30)
    assert list(answer.plan.steps) == steps
    assert answer.plan.space_bytes == space
    assert set(answer.plan.blockers) == blockers
    assert [field.name for field, _ in answer.ListFields()] == ["plan"], "nothing was done, so nothing else is answered"
    assert (fingerprint.of_pool(scene.pool), fingerprint.of_database(scene.state)) == before


REFUSED = [
    ("volumes", V.CreateVolumeRequest(pool="pools/nobody", volume_id="new", size_bytes=MIB), "NOT_FOUND"),
    ("volumes", V.CreateVolumeRequest(pool="pools/main", volume_id="held", size_bytes=9 * MIB), "ALREADY_EXISTS"),
    ("volumes", V.CreateVolumeRequest(pool="pools/main", volume_id="UPPER", size_bytes=MIB), "INVALID_ARGUMENT"),
    ("volumes", V.DeleteVolumeRequest(name="pools/main/volumes/held", uid="00000000-0000-4000-8000-000000000000"), "FAILED_PRECONDITION"),
    ("volumes", V.ExpandVolumeRequest(name="pools/main/volumes/nobody", size_bytes=MIB), "NOT_FOUND"),
    ("volumes", V.CreateVolumeRequest(pool="pools/main", volume_id="new", size_bytes=1 << 50), "RESOURCE_EXHAUSTED"),
    ("volumes", V.ExpandVolumeRequest(name="pools/main/volumes/held", size_bytes=1 << 50), "RESOURCE_EXHAUSTED"),
    (
        "volumes",
        V.CreateVolumeRequest(pool="pools/main", volume_id="new", size_bytes=1 << 40, provisioning=V.PROVISIONING_THICK),
        "RESOURCE_EXHAUSTED",
    ),
    ("volumes", V.UpdateVolumeRequest(name="pools/main/volumes/nobody"), "NOT_FOUND"),
    ("volumes", V.RevertVolumeRequest(name="pools/main/volumes/held", snapshot="none"), "NOT_FOUND"),
    (
        "volumes",
        V.AdoptVolumeRequest(pool="pools/main", locator="foreign.img", volume_id="held", format=V.VOLUME_FORMAT_RAW),
        "ALREADY_EXISTS",
    ),
    ("snapshots", S.CreateSnapshotRequest(volume="pools/main/volumes/nobody", snapshot_id="s"), "NOT_FOUND"),
    ("snapshots", S.DeleteSnapshotRequest(name="pools/nobody/volumes/held/snapshots/s1"), "NOT_FOUND"),
    ("attachments", A.AttachVolumeRequest(volume="pools/main/volumes/held", host="hosts/lab", domain="nobody"), "NOT_FOUND"),
    ("attachments", A.AttachVolumeRequest(volume="pools/main/volumes/held", host="hosts/deaf", domain="test"), "UNAVAILABLE"),
]


@pytest.mark.parametrize(("service", "request_", "code"), REFUSED, ids=lambda value: type(value).__name__)
def test_a_plan_is_refused_as_the_call_would_be(scene, service, request_, code):
    before = fingerprint.of_pool(scene.pool), fingerprint.of_database(scene.state)
    asked = type(request_)()
    asked.CopyFrom(request_)
    asked.validate_only = True
    assert refused(call_of(scene, service, asked), asked).code == code
    assert (fingerprint.of_pool(scene.pool), fingerprint.of_database(scene.state)) == before
