"""AttachmentService on the wire without a guest: prepared attachments, refusals. What a guest sees is in the tests of the host side."""

import os
import time
from xml.etree import ElementTree as ET

import pytest

from tests.edge.place import MIB
from tests.edge.wire import refused
from volgate.v1 import attachment_pb2, operation_pb2, volume_pb2
from volgate.v1.attachment_pb2 import (
    AttachVolumeRequest,
    DetachVolumeRequest,
    DiskOptions,
    GetAttachmentRequest,
    ListAttachmentsRequest,
    ListPathsRequest,
    WatchPathsRequest,
)

OPTIONS = DiskOptions(
    bus=attachment_pb2.DISK_BUS_VIRTIO_BLK,
    serial="S-1",
    access=attachment_pb2.ACCESS_MODE_READ_WRITE,
    qos={"total_iops_sec": 100},
    cache=attachment_pb2.CACHE_MODE_NONE,
    io=attachment_pb2.IO_MODE_NATIVE,
    transport=attachment_pb2.DISK_TRANSPORT_HOST,
    error_policy=attachment_pb2.ERROR_POLICY_REPORT,
)


def prepare(place, volume, **more):
    request = AttachVolumeRequest(**({"volume": volume.name, "host": "hosts/lab", "domain": "test", "prepare_only": True} | more))
    return place.wire.attachments.AttachVolume(request, timeout=30)


@pytest.fixture
def prepared(place):
    made = place.volume(4 * MIB)
    return made, prepare(place, made, options=OPTIONS)


def test_a_prepared_disk_is_recorded_and_its_xml_given(place, prepared):
    made, answer = prepared
    found = answer.attachment
    assert (found.volume, found.volume_uid, found.host, found.domain_name) == (made.name, made.uid, "hosts/lab", "test")
    assert (found.state, found.options) == (attachment_pb2.ATTACHMENT_STATE_PREPARED, OPTIONS)
    assert answer.operation.state == operation_pb2.OPERATION_STATE_DONE
    disk = ET.fromstring(answer.disk_xml)
    assert disk.tag == "disk" and disk.findtext("serial") == "S-1"
    assert disk.find("source").get("file").startswith(str(place.pool))
    assert place.wire.attachments.GetAttachment(GetAttachmentRequest(name=found.name)).attachment == found
    for filters in ({}, {"volume": made.name}, {"volume": made.name, "host": "hosts/lab"}):
        assert found in place.wire.attachments.ListAttachments(ListAttachmentsRequest(**filters)).attachments
    assert not place.wire.attachments.ListAttachments(ListAttachmentsRequest(volume=made.name, host="hosts/deaf")).attachments
    assert list(place.wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=made.name)).volume.attachments) == [found.name]


def test_disks_prepared_for_one_domain_have_places_of_their_own(place, prepared):
    others = [prepare(place, place.volume(4 * MIB), options=DiskOptions(bus=OPTIONS.bus)) for _ in range(2)]
    targets = {ET.fromstring(answer.disk_xml).find("target").get("dev") for answer in (prepared[1], *others)}
    assert len(targets) == 3


def test_the_same_three_give_the_same_attachment_and_other_options_are_a_conflict(place, prepared):
    made, first = prepared
    again = prepare(place, made, options=OPTIONS)
    assert (again.attachment, again.disk_xml) == (first.attachment, first.disk_xml)
    other = AttachVolumeRequest(volume=made.name, host="hosts/lab", domain="test", prepare_only=True, options=DiskOptions(serial="S-2"))
    said = refused(place.wire.attachments.AttachVolume, other)
    assert (said.code, said.reason) == ("ALREADY_EXISTS", "EXISTS_DIFFERENT") and "serial is S-1, asked S-2" in said.message


def test_an_attached_volume_is_held_by_name(place, prepared):
    made, answer = prepared
    calls = [
        (place.wire.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=made.name)),
        (place.wire.volumes.ExportVolume, volume_pb2.ExportVolumeRequest(name=made.name)),
        (place.wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), source=made.name)),
    ]
    for call, request in calls:
        said = refused(call, request)
        assert (said.code, said.reason) == ("FAILED_PRECONDITION", "IN_USE")
        assert [(kind, name) for kind, name, _ in said.holders] == [("attachment", answer.attachment.name)]
        assert "domain test on hosts/lab" in said.holders[0][2]


def test_a_detached_one_is_gone_and_detaching_again_succeeds(place, prepared):
    made, answer = prepared
    for _ in range(2):
        done = place.wire.attachments.DetachVolume(DetachVolumeRequest(name=answer.attachment.name, wait_seconds=1), timeout=30)
        assert not done.HasField("attachment") and done.operation.state == operation_pb2.OPERATION_STATE_DONE
    assert refused(place.wire.attachments.GetAttachment, GetAttachmentRequest(name=answer.attachment.name)).code == "NOT_FOUND"
    place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=made.name))


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"volume": "pools/main/volumes/nobody"}, "NOT_FOUND", "NOT_FOUND"),
        ({"host": "hosts/nobody"}, "NOT_FOUND", "NOT_FOUND"),
        ({"domain": "nobody"}, "NOT_FOUND", "DOMAIN_NOT_FOUND"),
        ({"host": ""}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"domain": ""}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"volume_uid": "00000000-0000-4000-8000-000000000000"}, "FAILED_PRECONDITION", "UID_MISMATCH"),
        ({"options": DiskOptions(access=attachment_pb2.ACCESS_MODE_SHARED)}, "FAILED_PRECONDITION", "PRECONDITION"),
    ],
    ids=str,
)
def test_an_attach_is_refused_with_its_reason_and_records_nothing(place, change, code, reason):
    made = place.volume()
    request = AttachVolumeRequest(**({"volume": made.name, "host": "hosts/lab", "domain": "test"} | change))
    said = refused(place.wire.attachments.AttachVolume, request)
    assert (said.code, said.reason) == (code, reason)
    assert not place.wire.attachments.ListAttachments(ListAttachmentsRequest(volume=made.name)).attachments


def test_a_host_whose_libvirt_is_down_is_unavailable_and_nothing_is_changed(place):
    made = place.volume()
    said = refused(place.wire.attachments.AttachVolume, AttachVolumeRequest(volume=made.name, host="hosts/deaf", domain="test"))
    assert said.code == "UNAVAILABLE" and said.reason in {"LIBVIRT_LOST", "UNREACHABLE"} and said.retry_after
    assert not place.wire.attachments.ListAttachments(ListAttachmentsRequest(volume=made.name)).attachments


def test_paths_of_a_volume_are_its_file_and_file_system(place):
    made = place.volume()
    answer = place.wire.attachments.ListPaths(ListPathsRequest(name=made.name), timeout=30)
    assert answer.redundancy == attachment_pb2.REDUNDANCY_SINGLE
    assert {"file", "filesystem"} <= {path.transport for path in answer.paths}
    assert all(path.state == attachment_pb2.PATH_STATE_ACTIVE_OPTIMIZED and not path.last_error for path in answer.paths)
    assert any(path.device.startswith(str(place.pool)) for path in answer.paths)


def test_who_watches_paths_is_told_of_a_change_once_and_of_the_end(place):
    made = place.volume()
    streams = [place.wire.attachments.WatchPaths(WatchPathsRequest(name=made.name), timeout=60) for _ in range(2)]
    assert {next(stream).redundancy for stream in streams} == {attachment_pb2.REDUNDANCY_SINGLE}
    disk = next(
        path.device for path in place.wire.attachments.ListPaths(ListPathsRequest(name=made.name)).paths if path.transport == "file"
    )
    os.rename(disk, f"{disk}.away")
    began = time.monotonic()
    answers = [next(stream) for stream in streams]
    assert time.monotonic() - began < 20
    assert {answer.redundancy for answer in answers} == {attachment_pb2.REDUNDANCY_DOWN}
    os.rename(f"{disk}.away", disk)
    assert {next(stream).redundancy for stream in streams} == {attachment_pb2.REDUNDANCY_SINGLE}
    streams[0].cancel()
    place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=made.name), timeout=30)
    assert refused(lambda **_: list(streams[1])).code == "NOT_FOUND"


def test_paths_of_what_does_not_exist_are_not_found(place):
    for name in ("pools/main/volumes/nobody", "pools/nobody/volumes/v", "attachments/00000000-0000-5000-8000-000000000000"):
        assert refused(place.wire.attachments.ListPaths, ListPathsRequest(name=name)).code == "NOT_FOUND"
        assert refused(place.wire.attachments.WatchPaths, WatchPathsRequest(name=name)).code == "NOT_FOUND"
    said = refused(place.wire.attachments.ListPaths, ListPathsRequest(name="things/x"))
    assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["name"])


def test_lists_of_what_does_not_exist_are_not_found(place):
    for filters in ({"volume": "pools/main/volumes/nobody"}, {"host": "hosts/nobody"}):
        assert refused(place.wire.attachments.ListAttachments, ListAttachmentsRequest(**filters)).code == "NOT_FOUND"
