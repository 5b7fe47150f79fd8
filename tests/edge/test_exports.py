"""Exports to a path on the server: the file appears whole, as ours alone, once, and only where that is allowed."""

import os
import subprocess

import pytest

from tests.edge.place import MIB, parts
from tests.edge.test_transfer import content, header
from tests.edge.wire import refused
from volgate.v1 import attachment_pb2, operation_pb2, volume_pb2
from volgate.v1.volume_pb2 import ExportVolumeRequest

RAW, QCOW2 = volume_pb2.VOLUME_FORMAT_RAW, volume_pb2.VOLUME_FORMAT_QCOW2
KINDS = {RAW: "raw", QCOW2: "qcow2"}


def export(place, request: ExportVolumeRequest, timeout: float = 60) -> list[volume_pb2.ExportVolumeResponse]:
    return list(place.wire.volumes.ExportVolume(request, timeout=timeout))


def filled(place, data: bytes, kind: int) -> volume_pb2.Volume:
    return place.wire.volumes.ImportVolume(parts(header(place, format=kind), data), timeout=60).volume


def entries(place) -> list[str]:
    return sorted(path.name for path in place.exports.iterdir())


def read(place, path, kind: int) -> bytes:
    back = place.images / place.name("back")
    subprocess.run(["qemu-img", "convert", "-f", KINDS[kind], "-O", "raw", path, back], check=True, timeout=60)
    return back.read_bytes()


@pytest.fixture
def target(place):
    return place.exports / place.name("out")


@pytest.mark.parametrize("source", [RAW, QCOW2])
@pytest.mark.parametrize("kind", [RAW, QCOW2])
def test_the_file_has_the_content_and_belongs_to_the_gateway_alone(place, target, source, kind):
    data, before = content(6 * MIB), entries(place)
    made = filled(place, data, source)
    answers = export(place, ExportVolumeRequest(name=made.name, format=kind, path=str(target)))
    last = answers[-1]
    assert (last.operation.state, last.operation.progress) == (operation_pb2.OPERATION_STATE_DONE, 1.0)
    assert (last.operation.method, last.operation.target, last.operation.uid) == ("ExportVolume", made.name, made.uid)
    assert last.total_bytes == target.stat().st_size
    assert not any(answer.chunk for answer in answers)
    assert read(place, target, kind) == data
    assert (target.stat().st_mode & 0o7777, target.stat().st_uid, target.stat().st_nlink) == (0o600, os.geteuid(), 1)
    assert entries(place) == sorted([*before, target.name])


def test_a_snapshot_is_exported_as_it_was(place, target):
    data = content(3 * MIB)
    made = filled(place, data, QCOW2)
    cut = place.snapshot(made)
    place.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=8 * MIB))
    export(place, ExportVolumeRequest(name=cut.name, path=str(target)))
    assert target.read_bytes() == data
    gone = ExportVolumeRequest(name=f"{made.name}/snapshots/nobody", path=f"{target}-2")
    assert refused(export, place, gone).code == "NOT_FOUND"


def test_a_repeat_is_answered_and_another_call_finds_the_name_taken(place, target):
    made = filled(place, content(2 * MIB), RAW)
    request = ExportVolumeRequest(name=made.name, path=str(target), request_id=place.name("export"))
    first, again = export(place, request)[-1], export(place, request)[-1]
    assert (again.operation.name, again.total_bytes) == (first.operation.name, 2 * MIB)
    said = refused(export, place, ExportVolumeRequest(name=made.name, path=str(target)))
    assert (said.code, said.fields) == ("ALREADY_EXISTS", ["path"])
    assert str(target) in said.message
    other = refused(export, place, ExportVolumeRequest(name=made.name, path=f"{target}-2", request_id=request.request_id))
    assert (other.code, other.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


@pytest.mark.parametrize("what", ["file", "folder", "dangling link"])
def test_what_has_the_name_already_stays(place, target, what):
    made = filled(place, content(MIB), RAW)
    if what == "file":
        target.write_text("precious")
    elif what == "folder":
        target.mkdir()
    else:
        target.symlink_to(place.exports / "nothing")
    before, found = entries(place), target.lstat()
    assert refused(export, place, ExportVolumeRequest(name=made.name, path=str(target))).code == "ALREADY_EXISTS"
    assert (entries(place), target.lstat()) == (before, found)


def test_a_link_does_not_lead_out_and_a_missing_folder_is_told(place):
    made = filled(place, content(MIB), RAW)
    (place.exports / "door").symlink_to(place.images)
    for path in (place.exports / "door" / "x", place.images / "x", place.exports / ".." / "images" / "x"):
        said = refused(export, place, ExportVolumeRequest(name=made.name, path=str(path)))
        assert (said.code, said.reason) == ("PERMISSION_DENIED", "DENIED")
        assert "[exports]" in said.message
    assert refused(export, place, ExportVolumeRequest(name=made.name, path=str(place.exports / "none" / "x"))).code == "NOT_FOUND"
    assert not (place.images / "x").exists()


def test_an_attached_volume_is_refused_and_leaves_nothing(place, target):
    made, before = filled(place, content(MIB), RAW), entries(place)
    attach = attachment_pb2.AttachVolumeRequest(volume=made.name, host="hosts/lab", domain="test", prepare_only=True)
    place.wire.attachments.AttachVolume(attach, timeout=30)
    said = refused(export, place, ExportVolumeRequest(name=made.name, path=str(target)))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert entries(place) == before


def test_an_export_that_waits_is_told_of_and_can_be_cancelled(place, target):
    made, stream = place.held()
    before = entries(place)
    answers = place.wire.volumes.ExportVolume(ExportVolumeRequest(name=made.name, path=str(target)), timeout=60)
    waiting = next(answers)
    assert waiting.operation.state == operation_pb2.OPERATION_STATE_QUEUED
    place.wire.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=waiting.operation.name))
    stream.cancel()
    assert refused(lambda **_: list(answers)).code == "CANCELLED"
    assert entries(place) == before
