"""Images in and out by stream: whole, broken, wrong; what goes wrong leaves nothing."""

import hashlib
import subprocess
import threading
import time

import grpc
import pytest

from tests.edge import fingerprint
from tests.edge.place import CONFIG, MIB, parts, running
from tests.edge.wire import Wire, refusal, refused
from volgate.v1 import operation_pb2, volume_pb2
from volgate.v1.volume_pb2 import ExportVolumeRequest, ImportHeader, ImportVolumeRequest

UNFINISHED = operation_pb2.ListOperationsRequest(unfinished_only=True)
RAW, QCOW2, VMDK, VHDX = (volume_pb2.VolumeFormat.Value(f"VOLUME_FORMAT_{name}") for name in ("RAW", "QCOW2", "VMDK", "VHDX"))


def content(size: int) -> bytes:
    """Bytes with a hole in the middle and no period."""
    third = size // 3
    filled = hashlib.shake_128(b"volgate").digest(third)
    return (filled + bytes(third) + filled[::-1]).ljust(size, b"\1")


def image(place, data: bytes, kind: str) -> bytes:
    raw, made = place.images / place.name("raw"), place.images / place.name("image")
    raw.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, made], check=True)
    return made.read_bytes()


def header(place, **more) -> ImportHeader:
    return ImportHeader(**({"pool": "pools/main", "volume_id": place.name("i"), "source_format": RAW} | more))


def sparse(said):
    """An upload of a header, bytes, and numbers of zeroes."""
    first, *rest = said
    yield ImportVolumeRequest(header=first)
    for part in rest:
        yield ImportVolumeRequest(hole=part) if isinstance(part, int) else ImportVolumeRequest(chunk=part)


def export(place, name, kind=0) -> bytes:
    """Read a whole export; gaps are zeroes."""
    whole, last = bytearray(), -1
    for piece in place.wire.volumes.ExportVolume(ExportVolumeRequest(name=name, format=kind), timeout=60):
        assert len(piece.chunk) <= MIB and (not piece.chunk or piece.offset > last)
        whole.extend(bytes(piece.total_bytes - len(whole)))
        whole[piece.offset : piece.offset + len(piece.chunk)] = piece.chunk
        last = piece.offset if piece.chunk else last
    return bytes(whole)


def state(place):
    return fingerprint.of_pool(place.pool / "volumes"), fingerprint.of_database(place.state, without=("operation",)), place.spool()


def rested(place):
    """The same, once nothing changes by itself: what an earlier test gave up may end after it."""
    seen, deadline = None, time.monotonic() + 30
    while (now := state(place)) != seen or place.wire.operations.ListOperations(UNFINISHED).operations:
        assert time.monotonic() < deadline
        seen = now
        time.sleep(0.1)
    return now


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_spool(place):
    yield
    deadline = time.monotonic() + 5
    while place.spool() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not place.spool()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vhdx"])
@pytest.mark.parametrize("target", [RAW, QCOW2])
def test_an_image_comes_in_and_goes_out_unchanged(place, kind, target):
    data = content(6 * MIB)
    upload = data if kind == "raw" else image(place, data, kind)
    head = header(place, source_format=volume_pb2.VolumeFormat.Value(f"VOLUME_FORMAT_{kind.upper()}"), format=target, labels={"a": "b"})
    answer = place.wire.volumes.ImportVolume(parts(head, upload), timeout=60)
    assert (answer.volume.size_bytes, answer.volume.format, dict(answer.volume.labels)) == (6 * MIB, target, {"a": "b"})
    assert answer.operation.state == operation_pb2.OPERATION_STATE_DONE
    assert export(place, answer.volume.name) == data
    written = place.images / place.name("out")
    written.write_bytes(export(place, answer.volume.name, QCOW2))
    back = place.images / place.name("back")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", written, back], check=True)
    assert back.read_bytes() == data


def test_holes_are_zeroes_that_are_not_sent(place):
    head = header(place, source_format=RAW, format=RAW, image_bytes=64 << 30)
    filled = content(MIB)
    sent = [head, filled, (8 << 30) + 5, b"\1", (56 << 30) - 6 - MIB]
    answer = place.wire.volumes.ImportVolume(sparse(sent), timeout=60)
    assert answer.volume.size_bytes == 64 << 30 and answer.volume.allocated_bytes < 8 * MIB
    pieces = list(place.wire.volumes.ExportVolume(ExportVolumeRequest(name=answer.volume.name), timeout=60))
    assert sum(len(piece.chunk) for piece in pieces) < 4 * MIB
    at = (8 << 30) + 5 + MIB
    assert b"".join(piece.chunk[at - piece.offset :][:1] for piece in pieces if 0 <= at - piece.offset < len(piece.chunk)) == b"\1"
    place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=answer.volume.name))  # others read every byte of the pool


def test_the_same_content_is_the_same_image_however_it_is_cut(place):
    head = header(place, request_id=place.name("import"))
    data = content(MIB)
    third = len(data) // 3
    ways = [[head, data], [head, data[:third], third, data[2 * third :]], [head, data[: third + 7], 3, data[third + 10 :]]]
    answers = [place.wire.volumes.ImportVolume(sparse(way), timeout=60) for way in ways]
    assert len({(answer.volume.uid, answer.operation.name) for answer in answers}) == 1
    said = refused(place.wire.volumes.ImportVolume, sparse([head, data[:third], third + 1, data[2 * third :]]))
    assert (said.code, said.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


def test_a_snapshot_is_exported_as_it_was(place):
    data = content(3 * MIB)
    made = place.wire.volumes.ImportVolume(parts(header(place), data)).volume
    cut = place.snapshot(made)
    place.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=8 * MIB))
    assert export(place, cut.name) == data
    assert export(place, made.name) == data.ljust(8 * MIB, b"\0")


def test_gaps_are_not_sent(place):
    made = place.volume(64 * MIB, format=RAW)
    pieces = list(place.wire.volumes.ExportVolume(ExportVolumeRequest(name=made.name)))
    assert [(piece.total_bytes, piece.chunk) for piece in pieces] == [(64 * MIB, b"")]


def test_a_larger_size_is_given_and_a_smaller_one_refused(place):
    data = content(2 * MIB)
    assert place.wire.volumes.ImportVolume(parts(header(place, size_bytes=4 * MIB), data)).volume.size_bytes == 4 * MIB
    before = rested(place)
    said = refused(place.wire.volumes.ImportVolume, parts(header(place, size_bytes=MIB), data))
    assert (said.code, said.reason, said.fields) == ("OUT_OF_RANGE", "OUT_OF_RANGE", ["header.size_bytes"])
    assert rested(place)[:2] == before[:2]


def test_a_repeat_with_the_same_bytes_is_answered_from_the_record(place):
    head = header(place, request_id=place.name("import"))
    first = place.wire.volumes.ImportVolume(parts(head, content(MIB)))
    again = place.wire.volumes.ImportVolume(parts(head, content(MIB)))
    assert (again.volume.uid, again.operation.name) == (first.volume.uid, first.operation.name)
    said = refused(place.wire.volumes.ImportVolume, parts(head, content(2 * MIB)))
    assert (said.code, said.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    head.request_id = ""
    said = refused(place.wire.volumes.ImportVolume, parts(head, content(MIB)))
    assert (said.code, said.reason) == ("ALREADY_EXISTS", "EXISTS_DIFFERENT")


def test_an_image_below_an_allowed_directory_is_read_there(place):
    path = place.images / "server.raw"
    path.write_bytes(content(MIB))
    made = place.wire.volumes.ImportVolume(parts(header(place, path=str(path)), b"")).volume
    assert export(place, made.name) == content(MIB)
    assert path.exists(), "the operator's file is his"


def test_server_side_paths_stay_below_the_allowed_directories(place):
    (place.top / "secret.raw").write_bytes(bytes(MIB))
    link = place.images / "link.raw"
    if not link.is_symlink():
        link.symlink_to(place.top / "secret.raw")
    before = rested(place)
    for path in (place.top / "secret.raw", place.images / "../secret.raw", link, "/etc/shadow", "/dev/zero"):
        said = refused(place.wire.volumes.ImportVolume, parts(header(place, path=str(path)), b""))
        assert (said.code, said.reason, said.fields) == ("PERMISSION_DENIED", "DENIED", ["header.path"]), path
    said = refused(place.wire.volumes.ImportVolume, parts(header(place, path=str(place.images / "none.raw")), b""))
    assert (said.code, said.fields) == ("NOT_FOUND", ["header.path"])
    said = refused(place.wire.volumes.ImportVolume, parts(header(place, path="images/none.raw"), b""))
    assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["header.path"])
    assert rested(place)[:2] == before[:2]


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        (QCOW2, content(MIB), "BAD_IMAGE"),
        (VHDX, content(MIB), "BAD_IMAGE"),
        (VMDK, content(MIB), "BAD_IMAGE"),
        (VMDK, b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "/etc/shadow" 0\n', "HOSTILE_IMAGE"),
        (RAW, b"", "OUT_OF_RANGE"),
    ],
    ids=["no-qcow2", "no-vhdx", "no-vmdk", "hostile-vmdk", "empty"],
)
def test_bytes_that_are_no_good_image_leave_nothing(place, kind, data, reason):
    before = rested(place)
    said = refused(place.wire.volumes.ImportVolume, parts(header(place, source_format=kind), data))
    assert said.reason == reason and said.code in {"FAILED_PRECONDITION", "OUT_OF_RANGE"}
    assert rested(place)[:2] == before[:2]


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
@pytest.mark.parametrize("percent", [3, 40, 80])
def test_an_image_that_was_cut_off_is_refused_not_read_as_zeroes(place, kind, percent):
    before, whole = rested(place), image(place, content(6 * MIB), kind)
    head = header(place, source_format=volume_pb2.VolumeFormat.Value(f"VOLUME_FORMAT_{kind.upper()}"))
    said = refused(place.wire.volumes.ImportVolume, parts(head, whole[: len(whole) * percent // 100]))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "BAD_IMAGE")
    assert rested(place)[:2] == before[:2]


@pytest.mark.parametrize("sent", [MIB - 1, MIB + 1, 0])
def test_a_stream_of_another_length_than_announced_is_refused(place, sent):
    before = rested(place)
    said = refused(place.wire.volumes.ImportVolume, parts(header(place, image_bytes=MIB), content(sent)))
    assert (said.code, said.fields) == ("INVALID_ARGUMENT", ["header.image_bytes"])
    assert rested(place) == before
    assert place.wire.volumes.ImportVolume(parts(header(place, image_bytes=MIB), content(MIB))).volume.size_bytes == MIB


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "header"),
        ([ImportVolumeRequest()], "header"),
        ([ImportVolumeRequest(chunk=b"x")], "header"),
        ([ImportVolumeRequest(header=ImportHeader(pool="pools/main", volume_id="x", source_format=RAW)), ImportVolumeRequest()], "chunk"),
        ([ImportVolumeRequest(header=ImportHeader(pool="pools/main", volume_id="x", source_format=RAW))] * 2, "chunk"),
        (
            [
                ImportVolumeRequest(header=ImportHeader(pool="pools/main", volume_id="x", source_format=RAW)),
                ImportVolumeRequest(chunk=bytes(MIB + 1)),
            ],
            "chunk",
        ),
    ],
    ids=["nothing", "empty", "no-header", "empty-chunk", "two-headers", "large-chunk"],
)
def test_a_stream_that_breaks_the_order_is_refused_and_leaves_nothing(place, messages, field):
    before = rested(place)
    said = refused(place.wire.volumes.ImportVolume, iter(messages))
    assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", [field])
    assert rested(place)[:2] == before[:2]


def test_an_upload_that_breaks_in_the_middle_leaves_nothing(place):
    before = rested(place)

    def broken():
        yield from parts(header(place), bytes(3 * MIB))
        while not place.spool():
            time.sleep(0.01)
        raise ConnectionResetError("the client died")

    with pytest.raises(grpc.RpcError):
        place.wire.volumes.ImportVolume(broken(), timeout=30)
    assert rested(place)[:2] == before[:2]


def test_an_upload_that_is_cancelled_leaves_nothing(place):
    before, go_on = rested(place), threading.Event()

    def slow():
        yield from parts(header(place), content(3 * MIB))
        go_on.wait(20)

    call = place.wire.volumes.ImportVolume.future(slow())
    while not place.spool():
        time.sleep(0.01)
    call.cancel()
    go_on.set()
    deadline = time.monotonic() + 5
    while place.spool() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rested(place) == before


def test_an_upload_whose_deadline_passes_leaves_nothing(place):
    before = rested(place)

    def endless():
        yield ImportVolumeRequest(header=header(place))
        for _ in range(40):
            yield ImportVolumeRequest(chunk=bytes(1024))
            time.sleep(0.1)

    with pytest.raises(grpc.RpcError) as caught:
        place.wire.volumes.ImportVolume(endless(), timeout=0.5)
    assert refusal(caught.value).code == "DEADLINE_EXCEEDED"
    assert rested(place)[:2] == before[:2]


def test_an_export_that_is_cancelled_gives_the_volume_free(place):
    made = place.wire.volumes.ImportVolume(parts(header(place, format=RAW), content(32 * MIB)), timeout=60).volume
    for kind in (RAW, QCOW2):
        stream = place.wire.volumes.ExportVolume(ExportVolumeRequest(name=made.name, format=kind), timeout=60)
        assert next(stream).total_bytes and next(stream).chunk
        stream.cancel()
        grown = volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=made.size_bytes + MIB)
        made = place.wire.volumes.ExpandVolume(grown, timeout=5).volume


def test_a_reader_that_goes_away_in_the_middle_of_a_piece_is_no_bug(place):
    """Cancelled, or gone with its connection, while the gateway waits to be read."""
    made, first = place.held()
    first.cancel()
    before = len(place.server.log.read_text())
    for goes in ["cancels", "hangs up"] * 3:
        with Wire(place.server.address) as wire:
            stream = wire.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=made.name), timeout=60)
            next(stream)
            time.sleep(0.2)  # nobody reads: the next write waits
            if goes == "cancels":
                stream.cancel()
    place.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=64 * MIB), timeout=30)
    told = place.server.log.read_text()[before:]
    assert "Traceback" not in told and '"BUG"' not in told, told[-3000:]


def test_an_export_cancelled_while_it_waits_for_the_volume_gives_its_turn_back(place):
    made = place.wire.volumes.ImportVolume(parts(header(place, format=RAW), content(32 * MIB)), timeout=60).volume
    first = place.wire.volumes.ExportVolume(ExportVolumeRequest(name=made.name), timeout=60)
    next(first)
    waiting = place.wire.volumes.ExportVolume(ExportVolumeRequest(name=made.name), timeout=60)
    time.sleep(0.3)
    waiting.cancel()
    first.cancel()
    assert place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=made.name), timeout=5).operation.name


def test_an_export_that_is_not_read_is_ended_and_gives_the_volume_free():
    with running(CONFIG.replace("[limits]", "[limits]\nreader_timeout = 1.0")) as own:
        made, stream = own.held()
        grown = volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=64 * MIB)
        assert own.wire.volumes.ExpandVolume(grown, timeout=60).volume.size_bytes == 64 * MIB, "with the reader's time its hold is over"
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        said = refusal(caught.value)
        assert (said.code, said.reason) == ("UNAVAILABLE", "READER_STALLED") and said.retry_after


def test_an_import_that_runs_shows_its_progress_and_is_cancelled_without_a_trace(place):
    image, block = place.images / "large.raw", content(MIB)
    with image.open("wb") as file:
        for _ in range(384):
            file.write(block)
    before = rested(place)
    head = header(place, path=str(image), format=QCOW2)
    call = place.wire.volumes.ImportVolume.future(parts(head, b""), timeout=60)
    listing = operation_pb2.ListOperationsRequest(unfinished_only=True)
    while not (found := place.wire.operations.ListOperations(listing, timeout=10).operations):
        time.sleep(0.002)
    seen = []
    for answer in place.wire.operations.WatchOperation(operation_pb2.WatchOperationRequest(name=found[0].name), timeout=60):
        seen.append(answer.operation)
        if 0 < answer.operation.progress < 1 and not call.done():
            place.wire.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=found[0].name), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    said = refusal(caught.value)
    assert (said.code, said.reason, said.metadata["operation"]) == ("CANCELLED", "CANCELLED", found[0].name)
    assert seen[-1].state == operation_pb2.OPERATION_STATE_CANCELLED and [o.progress for o in seen] == sorted(o.progress for o in seen)
    assert {step.name: step.state for step in seen[-1].steps}["create"] == "undone"
    assert rested(place)[:2] == before[:2]
    image.unlink()


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (ExportVolumeRequest(name="pools/main/volumes/nobody"), "NOT_FOUND", "NOT_FOUND"),
        (ExportVolumeRequest(name="pools/nobody/volumes/nobody"), "NOT_FOUND", "NOT_FOUND"),
        (ExportVolumeRequest(name="pools/main/volumes/nobody/snapshots/s"), "NOT_FOUND", "NOT_FOUND"),
        (ExportVolumeRequest(name="pools/gone/volumes/a"), "UNAVAILABLE", "POOL_DOWN"),
        (ExportVolumeRequest(name="nobody"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (ExportVolumeRequest(name="pools/main/volumes/a", format=VMDK), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_says_why(place, request_, code, reason):
    said = refused(place.wire.volumes.ExportVolume, request_)
    assert (said.code, said.reason) == (code, reason)


def test_a_missing_snapshot_cannot_be_exported(place):
    made = place.volume()
    assert refused(place.wire.volumes.ExportVolume, ExportVolumeRequest(name=f"{made.name}/snapshots/none")).code == "NOT_FOUND"
