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
from tests.recovery.daemon import Daemon, commands
from tests.recovery.halting import Halting
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import stray
from tests.soaking import SOAK, count
from volgate.v1 import volume_pb2

MIB = 1 << 20
QCOW2 = volume_pb2.VOLUME_FORMAT_QCOW2
ROUNDS = count(2, soak=25)


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


def imported(image: Path, name: str) -> Call:
    return Call("import", {"pool": POOL, "volume_id": name, "path": str(image), "source_format": QCOW2, **rid()})


def killed(halting: Halting, daemon: Daemon, victim: str) -> None:
    """Kill the command that stands still, or the process that started it and takes it along."""
    command = halting.caught()
    os.kill(command if victim == "qemu-img" else commands(daemon, victim)[0], signal.SIGKILL)


VICTIMS = ("qemu-img", "volgate.forker")


@pytest.mark.timeout(1800 if SOAK else 180)
@pytest.mark.parametrize("victim", VICTIMS)
def test_an_import_whose_child_is_killed_is_undone_or_done_and_may_be_made_again(base: Path, victim: str):
    told = 0
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        image = make_image(daemon.images / "large.qcow2", 16 * MIB, 3)
        for round_ in range(ROUNDS):
            call = imported(image, f"v{round_}")
            with Halting(daemon, ("qemu-img convert", "qemu-img info")[round_ % 2]) as halting:
                running = threads.submit(caller.once, call)
                killed(halting, daemon, victim)
            try:
                running.result(60)
            except Refused as error:
                told += 1
                assert error.code in ("ABORTED", "UNAVAILABLE"), error
            assert caller(call).volume.size_bytes == 16 * MIB
            assert stray(daemon.pool, daemon.state / "spool") == []
            assert list(daemon.images.glob(".*")) == []
            assert commands(daemon, "qemu-img") == []
            caller(Call("delete", {"name": volume_name(f"v{round_}"), **rid()}))
        print(f"{victim}: {told} of {ROUNDS} imports were told of the kill")
        assert told == (ROUNDS if victim == "qemu-img" else 0)  # a lost spawner is no answer: the gateway tries again by itself
        assert len(commands(daemon, "volgate.forker")) == 1


@pytest.mark.timeout(1800 if SOAK else 180)
@pytest.mark.parametrize("victim", VICTIMS)
def test_an_export_whose_child_is_killed_fails_cleanly_and_may_be_made_again(base: Path, victim: str):
    with Daemon(base) as daemon, daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        call = imported(make_image(daemon.images / "large.qcow2", 16 * MIB, 3), "v")
        caller(Call("import", {**call.fields, "format": volume_pb2.VOLUME_FORMAT_RAW}))
        request = volume_pb2.ExportVolumeRequest(name=volume_name("v"), format=QCOW2)  # what has to be converted

        def export() -> int:
            return sum(len(piece.chunk) for piece in caller.volumes.ExportVolume(request, timeout=60))

        for _ in range(ROUNDS):
            with Halting(daemon, "qemu-img convert") as halting:
                running = threads.submit(export)
                killed(halting, daemon, victim)
            with pytest.raises(grpc.RpcError) as refused:
                running.result(60)
            assert refused.value.code().name in ("ABORTED", "UNAVAILABLE"), refused.value
            assert list((daemon.state / "spool").iterdir()) == []
            assert export() > 16 * MIB
        caller(Call("update", {"name": volume_name("v"), "labels": {"lock": "free"}, **rid()}))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_merge_of_layers_whose_child_is_killed_loses_nothing(base: Path, victim: str):
    with Daemon(base) as daemon, daemon.caller() as caller:
        caller(Call("create", {"pool": POOL, "volume_id": "v", "size_bytes": 16 * MIB, **rid()}))
        for number, cut in enumerate(("s", "t")):
            write_pattern(daemon, "v", number + 1, offset=4 * MIB * number, length=6 * MIB)
            caller(Call("snapshot", {"volume": volume_name("v"), "snapshot_id": cut, **rid()}))
        write_pattern(daemon, "v", 9, length=MIB)
        before = caller.content("v")
        with Halting(daemon, "qemu-img rebase") as halting:
            caller(Call("unsnapshot", {"name": snapshot_name("v", "t"), **rid()}))
            killed(halting, daemon, victim)
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


def test_a_merge_that_a_killed_daemon_did_not_begin_is_begun_by_the_next(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller:
        for number in range(ROUNDS):
            name = f"v{number}"
            caller(Call("create", {"pool": POOL, "volume_id": name, "size_bytes": MIB, **rid()}))
            caller(Call("snapshot", {"volume": volume_name(name), "snapshot_id": "s", **rid()}))
            caller(Call("unsnapshot", {"name": snapshot_name(name, "s"), **rid()}))
            daemon.kill9()
            daemon.start()
            deadline = time.monotonic() + 20
            while caller.volume(name, refresh=True).depth:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            caller.settle()
        assert stray(daemon.pool) == []
