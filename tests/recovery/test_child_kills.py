"""kill -9 of what the daemon starts: the call ends cleanly or is made again by itself, nothing is left, the daemon goes on."""

from __future__ import annotations

import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.recovery.calls import POOL, Call, Refused, snapshot_name, volume_name
from tests.recovery.daemon import Daemon, commands, wait_for
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import stray
from tests.soaking import SOAK, count, draw
from volgate.v1 import volume_pb2

MIB = 1 << 20
QCOW2 = volume_pb2.VOLUME_FORMAT_QCOW2
ROUNDS = count(2, soak=25)


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


def imported(image: Path, name: str) -> Call:
    return Call("import", {"pool": POOL, "volume_id": name, "path": str(image), "source_format": QCOW2, **rid()})


@pytest.mark.timeout(1800 if SOAK else 180)
@pytest.mark.parametrize("victim", ["qemu-img", "volgate.forker"])
def test_an_import_whose_child_is_killed_is_undone_or_done_and_may_be_made_again(base: Path, victim: str):
    random, hit = draw(), 0
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        image = make_image(daemon.images / "large.qcow2", 192 * MIB, 3)
        for round_ in range(ROUNDS):
            call = imported(image, f"v{round_}")
            running = threads.submit(caller.once, call)
            child = wait_for(daemon, "qemu-img convert", running.done)
            time.sleep(random.random() * 0.15)
            target = child if victim == "qemu-img" else (commands(daemon, victim) or [None])[0]
            if target is not None and not running.done():
                try:
                    os.kill(target, signal.SIGKILL)
                except ProcessLookupError:
                    target = None
            try:
                running.result(60)
            except Refused as error:
                hit += 1
                assert error.code in ("FAILED_PRECONDITION", "ABORTED", "UNAVAILABLE"), error
            assert caller(call).volume.size_bytes == 192 * MIB
            assert stray(daemon.pool, daemon.state / "spool") == []
            assert list(daemon.images.glob(".*")) == []
            assert commands(daemon, "qemu-img") == []
            caller(Call("delete", {"name": volume_name(f"v{round_}"), **rid()}))
        print(f"{victim}: {hit} of {ROUNDS} imports were told of the kill")
        assert hit or victim != "qemu-img"  # a lost spawner is no answer: the gateway makes the attempt again by itself
        assert len(commands(daemon, "volgate.forker")) == 1


@pytest.mark.parametrize("victim", ["qemu-img", "volgate.forker"])
def test_an_export_whose_child_is_killed_fails_cleanly_and_may_be_made_again(base: Path, victim: str):
    hit = 0
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        image = make_image(daemon.images / "large.qcow2", 192 * MIB, 3)
        caller(imported(image, "v"))
        caller(Call("snapshot", {"volume": volume_name("v"), "snapshot_id": "s", **rid()}))
        for _ in range(ROUNDS):
            request = volume_pb2.ExportVolumeRequest(name=volume_name("v"), format=volume_pb2.VOLUME_FORMAT_RAW)

            def export(request: volume_pb2.ExportVolumeRequest = request) -> int:
                return sum(len(piece.chunk) for piece in caller.volumes.ExportVolume(request, timeout=60))

            running = threads.submit(export)
            child = wait_for(daemon, "qemu-img convert", running.done)
            target = child if victim == "qemu-img" else commands(daemon, victim)[0]
            if target is not None:
                os.kill(target, signal.SIGKILL)
            try:
                assert running.result(60) == 192 * MIB
            except grpc.RpcError as error:
                hit += 1
                assert error.code().name in ("FAILED_PRECONDITION", "ABORTED", "UNAVAILABLE"), error
            assert list((daemon.state / "spool").iterdir()) == []
            assert export() == 192 * MIB
        caller(Call("update", {"name": volume_name("v"), "labels": {"lock": "free"}, **rid()}))
        print(f"{victim}: {hit} of {ROUNDS} exports were told of the kill")
        assert hit


@pytest.mark.parametrize("victim", ["qemu-img", "volgate.forker"])
def test_a_merge_of_layers_whose_child_is_killed_loses_nothing(base: Path, victim: str):
    with Daemon(base) as daemon, daemon.caller() as caller:
        caller(Call("create", {"pool": POOL, "volume_id": "v", "size_bytes": 256 * MIB, **rid()}))
        for number, cut in enumerate(("s", "t")):
            write_pattern(daemon, "v", number + 1, offset=64 * MIB * number, length=96 * MIB)
            caller(Call("snapshot", {"volume": volume_name("v"), "snapshot_id": cut, **rid()}))
        write_pattern(daemon, "v", 9, length=MIB)
        before = caller.content("v")
        caller(Call("unsnapshot", {"name": snapshot_name("v", "t"), **rid()}))
        child = wait_for(daemon, "qemu-img rebase", lambda: not caller.list_operations(unfinished=True))
        assert child, "nothing was merged"
        os.kill(child if victim == "qemu-img" else commands(daemon, victim)[0], signal.SIGKILL)
        caller.settle()
        assert caller.content("v") == before
        caller(Call("unsnapshot", {"name": snapshot_name("v", "s"), **rid()}))  # its merge takes up what the kill left
        caller.settle()
        assert caller.content("v") == before
        assert caller.volume("v", refresh=True).depth == 0
        assert stray(daemon.pool) == []


def test_a_spawner_killed_while_idle_is_started_anew(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller:
        image = make_image(daemon.images / "small.qcow2", MIB, 3)
        for number in range(3):
            (spawner,) = commands(daemon, "volgate.forker")
            os.kill(spawner, signal.SIGKILL)
            caller(imported(image, f"v{number}"))
            assert commands(daemon, "volgate.forker") not in ([spawner], [])
