"""Images on their way in and out when the daemon is killed: an upload that was whole becomes its volume, an export to a file on the
server is finished, all else goes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tests.recovery.calls import POOL, Call, Refused, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.halting import Halting
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import stray
from volgate.v1 import operation_pb2, volume_pb2

MIB = 1 << 20
QCOW2 = volume_pb2.VOLUME_FORMAT_QCOW2


def parts(header: volume_pb2.ImportHeader, image: Path) -> Iterator[volume_pb2.ImportVolumeRequest]:
    yield volume_pb2.ImportVolumeRequest(header=header)
    with image.open("rb") as stream:
        while chunk := stream.read(MIB):
            yield volume_pb2.ImportVolumeRequest(chunk=chunk)


def header(name: str) -> volume_pb2.ImportHeader:
    return volume_pb2.ImportHeader(pool=POOL, volume_id=name, source_format=QCOW2, request_id=uuid.uuid4().hex)


def test_an_upload_that_was_whole_becomes_its_volume_after_a_kill(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        image, wanted = make_image(base / "image.qcow2", 48 * MIB, 6), header("v")
        with Halting(daemon, "qemu-img convert") as halting:
            running = threads.submit(caller.volumes.ImportVolume, parts(wanted, image), timeout=60)
            halting.caught()
            daemon.kill9()
        assert isinstance(running.exception(30), grpc.RpcError)
        daemon.start()
        caller.settle()
        assert [(row.state, row.error_message) for row in caller.list_operations()] == [(operation_pb2.OPERATION_STATE_DONE, "")]
        assert caller.content("v") == b"\6" * 48 * MIB
        again = caller.volumes.ImportVolume(parts(wanted, image), timeout=60)  # the whole call again, bytes included
        assert again.volume.uid == caller.volume("v").uid
        assert stray(daemon.pool, daemon.state / "spool") == []


def test_an_upload_that_was_cut_off_goes_with_the_kill(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller:
        image, wanted = make_image(base / "image.qcow2", 4 * MIB, 6), header("v")

        def until_killed() -> Iterator[volume_pb2.ImportVolumeRequest]:
            yield from parts(wanted, image)
            while not any((daemon.state / "spool").iterdir()):
                pass
            daemon.kill9()

        running = caller.volumes.ImportVolume.future(until_killed(), timeout=60)
        assert running.exception(60) is not None
        daemon.start()
        assert caller.list_operations() == []
        assert stray(daemon.pool, daemon.state / "spool") == []
        assert caller.volumes.ImportVolume(parts(wanted, image), timeout=60).volume.size_bytes == 4 * MIB


def test_an_export_that_a_kill_cuts_off_leaves_nothing(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        caller(
            Call(
                "create",
                {
                    "pool": POOL,
                    "volume_id": "v",
                    "size_bytes": 16 * MIB,
                    "format": volume_pb2.VOLUME_FORMAT_RAW,
                    "request_id": uuid.uuid4().hex,
                },
            )
        )
        write_pattern(daemon, "v", 4, length=16 * MIB)
        request = volume_pb2.ExportVolumeRequest(name=volume_name("v"), format=QCOW2)  # what has to be converted
        with Halting(daemon, "qemu-img convert") as halting:
            running = threads.submit(lambda: list(caller.volumes.ExportVolume(request, timeout=60)))
            halting.caught()
            assert any((daemon.state / "spool").iterdir())
            daemon.kill9()
        assert isinstance(running.exception(30), grpc.RpcError)
        daemon.start()
        assert list((daemon.state / "spool").iterdir()) == []
        assert caller.content("v") == b"\4" * 16 * MIB


def test_an_export_to_the_server_is_finished_after_a_kill(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        made = {"pool": POOL, "volume_id": "v", "size_bytes": 16 * MIB, "format": QCOW2, "request_id": uuid.uuid4().hex}
        caller(Call("create", made))
        write_pattern(daemon, "v", 4, length=16 * MIB)
        file = daemon.exports / "v.raw"
        call = Call("export", {"name": volume_name("v"), "path": str(file), "request_id": uuid.uuid4().hex})
        with Halting(daemon, "qemu-img convert") as halting:
            running = threads.submit(caller.once, call)
            halting.caught()
            assert [path.name[:16] for path in daemon.exports.iterdir()] == [".volgate-export-"]
            daemon.kill9()
        assert isinstance(running.exception(30), Refused)
        daemon.start()
        caller.settle()
        assert [path.name for path in daemon.exports.iterdir()] == ["v.raw"]
        assert file.read_bytes() == b"\4" * 16 * MIB
        assert caller(call).total_bytes == 16 * MIB


def test_an_export_to_the_server_that_is_cancelled_leaves_nothing(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        caller(Call("create", {"pool": POOL, "volume_id": "v", "size_bytes": 16 * MIB, "request_id": uuid.uuid4().hex}))
        call = Call("export", {"name": volume_name("v"), "path": str(daemon.exports / "v.raw"), "request_id": uuid.uuid4().hex})
        with Halting(daemon, "qemu-img convert") as halting:
            running = threads.submit(caller.once, call)
            halting.caught()
            (row,) = caller.list_operations(unfinished=True)
            caller.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=row.name))
            error = running.exception(30)
        assert isinstance(error, Refused)
        assert error.code == "CANCELLED"
        assert list(daemon.exports.iterdir()) == []
        assert caller(call).total_bytes == 16 * MIB
