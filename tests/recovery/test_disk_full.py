"""No space: under the pool, under the state directory, in the middle of an import. Clear errors, nothing lost, no restart needed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recovery.calls import POOL, Call, Caller, Refused, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.images import active_file, make_image
from tests.recovery.pool_files import fingerprint, stray
from volgate.v1 import volume_pb2

MIB = 1 << 20
QCOW2, RAW = volume_pb2.VOLUME_FORMAT_QCOW2, volume_pb2.VOLUME_FORMAT_RAW


@contextlib.contextmanager
def mounted(path: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes in memory."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "volgate-test", str(path)], check=True, timeout=10)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=10)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all space of a file system but `leave` bytes."""
    path = folder / "filler"
    found = os.statvfs(folder)
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(4096, found.f_bavail * found.f_frsize - leave))
    return path


@contextlib.contextmanager
def failing(pid: int, call: str, error: str) -> Iterator[None]:
    """Make a system call of a process fail."""
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    strace = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", *inject, "-p", str(pid)])
    try:
        while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
        time.sleep(0.2)  # the other threads
        yield
    finally:
        strace.terminate()
        strace.wait(10)


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


def create(name: str, size: int = MIB, **fields: object) -> Call:
    return Call("create", {"pool": POOL, "volume_id": name, "size_bytes": size, **rid(), **fields})


def refused(caller: Caller, call: Call) -> Refused:
    with pytest.raises(Refused) as found:
        caller.once(call, 30)
    return found.value


def calls_that_need_space(image: Path) -> dict[str, Call]:
    """One call of every verb on what the test made."""
    return {
        "create": create("b"),
        "clone": create("c", 0, source=volume_name("a")),
        "snapshot": Call("snapshot", {"volume": volume_name("a"), "snapshot_id": "t", **rid()}),
        "expand thick": Call("expand", {"name": volume_name("thick"), "size_bytes": 2 * MIB, **rid()}),
        "expand": Call("expand", {"name": volume_name("a"), "size_bytes": 2 * MIB, **rid()}),
        "import": Call("import", {"pool": POOL, "volume_id": "d", "path": str(image), "source_format": QCOW2, **rid()}),
        "revert": Call("revert", {"name": volume_name("a"), "snapshot": "s", **rid()}),
        "update": Call("update", {"name": volume_name("a"), "labels": {"k": "v"}, **rid()}),
    }


def test_a_full_pool_refuses_clearly_and_serves_again_when_there_is_space(base: Path):
    with mounted(base / "small", 64 * MIB) as small, Daemon(base, pool=small / "pool") as daemon, daemon.caller() as caller:
        image = make_image(daemon.images / "image.qcow2", 8 * MIB, 5)
        caller(create("a"))
        caller(Call("snapshot", {"volume": volume_name("a"), "snapshot_id": "s", **rid()}))
        caller(create("thick", MIB, format=RAW, provisioning=volume_pb2.PROVISIONING_THICK))
        caller.settle()
        for verb, call in calls_that_need_space(image).items():
            before = fingerprint(daemon.pool), caller.content("a")
            filler = fill(small)
            error = refused(caller, call)
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_SPACE"), f"{verb}: {error}"
            assert not caller.list_operations(unfinished=True)
            filler.unlink()
            assert (fingerprint(daemon.pool), caller.content("a")) == before, verb
            caller(call)
            caller.settle()
            assert stray(daemon.pool, daemon.state / "spool") == [], verb


def test_a_volume_can_be_deleted_while_the_pool_is_full(base: Path):
    with mounted(base / "small", 64 * MIB) as small, Daemon(base, pool=small / "pool") as daemon, daemon.caller() as caller:
        caller(create("a", 8 * MIB, format=RAW, provisioning=volume_pb2.PROVISIONING_THICK))
        filler = fill(small)
        caller(Call("delete", {"name": volume_name("a"), **rid()}))
        assert stray(daemon.pool) == []
        caller(create("b"))
        filler.unlink()


def test_space_that_ends_in_the_middle_of_an_import_undoes_it(base: Path):
    with mounted(base / "small", 64 * MIB) as small, Daemon(base, pool=small / "pool") as daemon, daemon.caller() as caller:
        image = make_image(daemon.images / "large.qcow2", 96 * MIB, 5)
        call = Call("import", {"pool": POOL, "volume_id": "b", "path": str(image), "source_format": QCOW2, **rid()})
        caller(create("a"))
        before = fingerprint(daemon.pool)
        error = refused(caller, call)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_SPACE"), error
        assert fingerprint(daemon.pool) == before
        subprocess.run(["mount", "-o", "remount,size=192M", str(small)], check=True, timeout=10)
        assert caller(call).volume.size_bytes == 96 * MIB
        assert caller.content("b")[-4:] == b"\5" * 4


def test_a_full_spool_refuses_an_upload_and_keeps_nothing_of_it(base: Path):
    with mounted(base / "small", 16 * MIB) as small:
        daemon = Daemon(base)
        daemon.config.write_text(daemon.config.read_text().replace("[imports]", f'[imports]\nspool = "{small}/spool"'))
        with daemon, daemon.caller() as caller:
            header = volume_pb2.ImportHeader(pool=POOL, volume_id="b", source_format=RAW, **rid())
            chunk = volume_pb2.ImportVolumeRequest(chunk=b"\7" * MIB)
            parts = [volume_pb2.ImportVolumeRequest(header=header), *[chunk] * 32]
            with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
                caller.volumes.ImportVolume(iter(parts), timeout=60)
            assert list((small / "spool").iterdir()) == []
            answer = caller.volumes.ImportVolume(iter(parts[:5]), timeout=60)
            assert answer.volume.size_bytes == 4 * MIB
            assert list((small / "spool").iterdir()) == []


@pytest.mark.parametrize("leave", [0, 8192])
def test_a_full_state_directory_refuses_mutations_answers_reads_and_serves_again(base: Path, leave: int):
    with mounted(base / "state", 16 * MIB) as state, Daemon(base) as daemon, daemon.caller() as caller:
        caller(create("a"))
        filler = fill(state, leave)
        before = fingerprint(daemon.pool)
        calls = [create(f"b{number}") for number in range(12)]
        errors = [refused(caller, call) for call in calls]
        assert {(error.code, error.reason) for error in errors} == {("RESOURCE_EXHAUSTED", "STATE_FULL")}, errors[0]
        assert "free space" in errors[0].message
        assert list(caller.list_volumes()) == ["a"]
        assert fingerprint(daemon.pool) == before
        filler.unlink()
        for call in calls:
            caller(call)
        daemon.kill9()
        daemon.start()
        assert sorted(caller.list_volumes()) == sorted(["a", *(f"b{number}" for number in range(12))])
        assert stray(daemon.pool) == []


def test_a_state_directory_with_io_errors_refuses_mutations_and_serves_again(base: Path):
    with Daemon(base) as daemon, daemon.caller() as caller:
        caller(create("a"))
        before = fingerprint(daemon.pool)
        call = create("b")
        with failing(daemon.pid, "fdatasync", "EIO"):
            error = refused(caller, call)
            assert (error.code, error.reason) == ("FAILED_PRECONDITION", "STATE_UNWRITABLE"), error
            assert list(caller.list_volumes()) == ["a"]
        assert fingerprint(daemon.pool) == before
        caller(call)
        daemon.kill9()
        daemon.start()
        assert sorted(caller.list_volumes()) == ["a", "b"]


def test_a_state_directory_that_fills_up_during_a_call_loses_nothing(base: Path):
    """The answer cannot be recorded: the outcome is in doubt until there is space, and known then without a restart."""
    with mounted(base / "state", 16 * MIB) as state, Daemon(base) as daemon, daemon.caller() as caller:
        image = make_image(daemon.images / "image.qcow2", 256 * MIB, 5)
        call = Call("import", {"pool": POOL, "volume_id": "b", "path": str(image), "source_format": QCOW2, **rid()})
        first = caller.volumes.ImportVolume.future(iter([volume_pb2.ImportVolumeRequest(header=call.message())]), timeout=60)
        while not caller.list_operations(unfinished=True):
            pass
        filler = fill(state)
        assert first.exception(60) is not None
        assert first.exception().code().name == "ABORTED", first.exception()
        assert caller.list_operations(unfinished=True)
        filler.unlink()
        assert caller(call).volume.size_bytes == 256 * MIB
        assert len([row for row in caller.list_operations() if row.request_id == call.fields["request_id"]]) == 1
        compare = ["qemu-img", "compare", "-q", str(image), str(active_file(daemon, "b")[0])]
        subprocess.run(compare, check=True, timeout=60)
