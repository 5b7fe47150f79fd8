"""Files of this host: their identity proven before anybody is given them, and the health of the way to them."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hypervisor.rig import Bench
from tests.labs.domain import Guest
from tests.plugins.directory_rig import MIB, Rig, mounted
from volgate.connect.health import file_paths
from volgate.connect.local import connect, unwritten
from volgate.connection import FileSource, LocalFile
from volgate.errors import DataLoss, NotFound, Precondition, VolgateError
from volgate.hosts.interface import DetachOutcome, EventKind, HostEvent
from volgate.model import ErrorPolicy, Format, PathState


@pytest.fixture
def pool(pool_dir: Path) -> Rig:
    return Rig(pool_dir)


@pytest.fixture
def layered(pool: Rig) -> LocalFile:
    """A volume of two layers."""
    volume = pool.create("vol")
    pool.snapshot(volume, "s")
    return pool.backend.connection(volume, host="local")


def test_proven_file_is_given_with_its_chain(layered: LocalFile) -> None:
    assert len(layered.chain) == 1
    assert connect(layered) == FileSource(layered.path, Format.QCOW2, layered.chain)


def replaced(file: LocalFile) -> None:
    copy = Path(file.path + ".copy")
    copy.write_bytes(Path(file.path).read_bytes())
    copy.rename(file.path)


def linked(path: str) -> None:
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)


def folder_linked(file: LocalFile) -> None:
    linked(str(Path(file.path).parent))


def tag_of_another(file: LocalFile) -> None:
    rig = Rig(Path(file.root))
    other = rig.backend.connection(rig.create("other"), host="local")
    Path(file.tag).write_bytes(Path(other.tag).read_bytes())


def fifo(file: LocalFile) -> None:
    os.unlink(file.path)
    os.mkfifo(file.path)


TAMPERED: dict[str, tuple[Callable[[LocalFile], object], type[VolgateError], str]] = {
    "another file under the name": (replaced, Precondition, "IDENTITY_MISMATCH"),
    "a link": (lambda file: linked(file.path), Precondition, "UNSAFE_PATH"),
    "a link to the folder": (folder_linked, Precondition, "UNSAFE_PATH"),
    "a link below": (lambda file: linked(file.chain[0][0]), Precondition, "UNSAFE_PATH"),
    "a link instead of the tag": (lambda file: linked(file.tag), Precondition, "UNSAFE_PATH"),
    "a fifo": (fifo, Precondition, "IDENTITY_MISMATCH"),
    "file gone": (lambda file: os.unlink(file.path), NotFound, "NOT_FOUND"),
    "layer gone": (lambda file: os.unlink(file.chain[0][0]), NotFound, "NOT_FOUND"),
    "tag gone": (lambda file: os.unlink(file.tag), NotFound, "NOT_FOUND"),
    "tag empty": (lambda file: os.truncate(file.tag, 0), DataLoss, "TAG_DAMAGED"),
    "tag no JSON": (lambda file: Path(file.tag).write_bytes(b"\xff{"), DataLoss, "TAG_DAMAGED"),
    "tag a list": (lambda file: Path(file.tag).write_bytes(b"[]"), DataLoss, "TAG_DAMAGED"),
    "tag of another volume": (tag_of_another, Precondition, "IDENTITY_MISMATCH"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_is_not_the_recorded_file_is_refused(layered: LocalFile, how: str) -> None:
    tamper, kind, reason = TAMPERED[how]
    tamper(layered)
    with pytest.raises(VolgateError) as refused:
        connect(layered)
    assert type(refused.value) is kind and refused.value.reason == reason and layered.root in refused.value.message


@pytest.mark.parametrize("path", ["/etc/passwd", "{root}/../../etc/passwd", "{root}", "relative", "{root}/volumes/../../x"])
@pytest.mark.parametrize("field", ["path", "tag", "chain"])
def test_nothing_outside_the_pool_is_opened(layered: LocalFile, field: str, path: str) -> None:
    outside = path.format(root=layered.root)
    value = ((outside, Format.RAW),) if field == "chain" else outside
    with pytest.raises(Precondition) as refused:
        connect(dataclasses.replace(layered, **{field: value}))
    assert refused.value.reason == "UNSAFE_PATH"


def test_no_descriptor_is_left_open(layered: LocalFile) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        connect(layered)
    os.truncate(layered.tag, 0)
    with pytest.raises(DataLoss):
        connect(layered)
    assert len(os.listdir("/proc/self/fd")) == before


def test_layer_is_unwritten_until_it_is_written(pool: Rig) -> None:
    volume, big = pool.create("vol"), pool.create("big", 1 << 40)
    for one, offset in ((volume, 7 * MIB), (big, (1 << 40) - MIB)):
        file = pool.backend.connection(one, host="local")
        assert unwritten(file)
        pool.write(one, 1, offset)
        assert not unwritten(file)
    raw = pool.backend.connection(pool.create("raw", format=Format.RAW), host="local")
    assert not unwritten(raw), "only a qcow2 layer can be empty"


@pytest.fixture
def disk_of_its_own(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "fs.img", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        (folder / "pool").mkdir()
        yield folder


def test_way_to_a_file_tells_every_change(disk_of_its_own: Path) -> None:
    mount, pool = disk_of_its_own, Rig(disk_of_its_own / "pool")
    file = pool.backend.connection(pool.create("vol"), host="local")

    def states() -> tuple[PathState, PathState]:
        of_file, of_mount = file_paths(file, "local")
        assert (of_file.transport, of_mount.transport) == ("file", "filesystem")
        return of_file.state, of_mount.state

    ok, failed = PathState.ACTIVE_OPTIMIZED, PathState.FAILED
    of_file, of_mount = file_paths(file, "local")
    assert states() == (ok, ok) and not of_mount.last_error
    assert of_mount.facts["mount"] == str(mount) and of_mount.facts["type"] == "ext4" and of_mount.device.startswith("/dev/loop")
    assert 0 < int(of_mount.facts["free_bytes"]) < 64 * MIB and of_file.facts["format"] == "qcow2"

    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    assert states() == (ok, failed) and "read-only" in file_paths(file, "local")[1].last_error
    subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
    assert states() == (ok, ok)

    with pytest.raises(OSError, match="No space") as full, (mount / "filler").open("wb") as filler:
        while True:
            filler.write(b"\0" * MIB)
            filler.flush()
    assert full.value.errno == errno.ENOSPC
    assert states() == (ok, failed) and "full" in file_paths(file, "local")[1].last_error
    os.truncate(mount / "filler", os.stat(mount / "filler").st_size - 5 * MIB)
    assert states() == (ok, ok)
    (mount / "filler").unlink()
    assert not file_paths(file, "local")[1].last_error

    os.rename(file.path, file.path + ".away")
    assert states() == (failed, ok) and "No such file" in file_paths(file, "local")[0].last_error
    Path(file.path).write_bytes(b"another")
    assert states() == (failed, ok) and "another file" in file_paths(file, "local")[0].last_error
    os.rename(file.path + ".away", file.path)
    assert states() == (ok, ok)


def test_paths_of_an_attached_disk(bench: Bench, guest: Guest) -> None:
    wanted = bench.plan(guest.uuid, bench.volume())

    def path():
        (found,) = bench.host.paths(guest.uuid, wanted.alias, timeout=5)
        return found

    assert path().state is PathState.FAILED and "does not have the disk" in path().last_error
    done = bench.attach(wanted)
    live = path()
    assert (live.state, live.errors, live.device) == (PathState.ACTIVE_OPTIMIZED, 0, done.target)
    assert live.facts == {"alias": wanted.alias, "target": done.target, "address": done.address, "serial": wanted.options.serial}
    assert bench.detach(wanted) is DetachOutcome.GONE
    (missing,) = bench.host.paths("no-such-domain", wanted.alias, timeout=5)
    assert missing.state is PathState.FAILED and "no-such-domain" in missing.last_error


def entry(path: str, table_at: int, value: int) -> None:
    """Overwrite the first entry of the table that a 64-bit field leads to."""
    with open(path, "r+b") as image:
        image.seek(table_at)
        image.seek(int.from_bytes(image.read(8), "big") & ~(1 << 63))
        image.write(value.to_bytes(8, "big"))


def l1_table(path: str) -> int:
    with open(path, "rb") as image:
        image.seek(40)
        return int.from_bytes(image.read(8), "big")


def test_errors_of_the_guest_are_counted_and_told(bench: Bench, guest: Guest) -> None:
    told: list[HostEvent] = []
    bench.host.subscribe(told.append)
    volume = bench.volume()
    bench.pool.write(volume, 1)
    wanted = bench.plan(guest.uuid, volume, error_policy=ErrorPolicy.REPORT)
    entry(wanted.connection.path, l1_table(wanted.connection.path), 1 << 62)  # a compressed cluster at the header: it does not inflate
    bench.attach(wanted)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and guest.sh(f"dd if={disk.device} of=/dev/null bs=4096 count=1 iflag=direct")[0] != 0
    found = bench.host.paths(guest.uuid, wanted.alias, timeout=5)[0]
    assert found.errors >= 1 and found.state is PathState.ACTIVE_OPTIMIZED
    bench.eventually(lambda: HostEvent(EventKind.IO_ERROR, guest.uuid, wanted.alias) in told)
    assert bench.detach(wanted) is DetachOutcome.GONE


def test_corrupt_image_does_not_hold_up_its_neighbours(bench: Bench, fresh_guest: Guest) -> None:
    """QEMU gives up an image whose tables make no sense, and then describes no node at all.

    It forgets a timer of such an image: some ten minutes after its disk is gone QEMU 7.2 crashes. No other test may have this guest.
    """
    corrupt, sound = (bench.plan(fresh_guest.uuid, bench.volume(name), error_policy=ErrorPolicy.REPORT) for name in ("corrupt", "sound"))
    entry(corrupt.connection.path, 40, 0x8000_0000_0001_2200)
    bench.attach(corrupt)
    bench.attach(sound)
    fresh_guest.wait_disk(sound.options.serial)
    with pytest.raises(RuntimeError, match="is ejected"):
        fresh_guest.qmp("query-named-block-nodes")
    assert bench.host.repair(fresh_guest.uuid, [sound.connection.path], apply=True, timeout=5) == []
    assert bench.detach(sound) is DetachOutcome.GONE
    assert bench.attach(sound).live and bench.detach(sound) is DetachOutcome.GONE
    assert bench.detach(corrupt) is DetachOutcome.GONE
    assert fresh_guest.qmp("query-named-block-nodes") == [] and fresh_guest.disks() == []
