"""A guest that an I/O error stopped: left as it is, or resumed once the way to its disk is healthy, as its attachment says."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.attachments.world import MIB, World, until
from tests.plugins.directory_rig import mounted
from volgate.v1 import attachment_pb2, pool_pb2

RESUME, STOP = attachment_pb2.ERROR_POLICY_RESUME, attachment_pb2.ERROR_POLICY_STOP
WRITE = "dd if=/dev/zero bs=1M count=24 2>/dev/null | tr '\\0' 'x' | dd of={} bs=1M conv=fsync 2>/dev/null; echo $?"


@pytest.fixture
def small(tmp_path: Path, libvirtd) -> Iterator[Path]:
    """A pool on a file system of 96 MiB, which libvirtd's namespace has too: the same device, so it is one file system."""
    top = Path(f"/tmp/vg-io-{os.getpid()}")
    with mounted(tmp_path / "fs.img", "ext4", 96 * MIB, top):
        device = subprocess.run(["findmnt", "-no", "SOURCE", top], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(libvirtd.inside("mount", device, str(top)), check=True)
        top.chmod(0o711)
        (top / "pool").mkdir(mode=0o711)
        try:
            yield top
        finally:
            subprocess.run(libvirtd.inside("umount", str(top)), check=True)
    top.rmdir()


@pytest.fixture
def world(tmp_path: Path, small: Path, libvirtd) -> Iterator[World]:
    made = World(tmp_path, small / "pool", libvirtd.uri)
    yield made
    made.close()


@contextlib.contextmanager
def full(small: Path) -> Iterator[None]:
    """The file system has some space left, and less than the guest writes."""
    filler = small / "filler"
    space = os.statvfs(small)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 8 * MIB)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)


def begin_to_write(guest, serial="data") -> int:
    """A writer in the guest; it ends when all is on the disk."""
    script = WRITE.format(guest.wait_disk(serial).device)
    return guest.agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})["pid"]


def stopped(guest) -> bool:
    return guest.domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]


def ended(guest, pid: int) -> bool:
    return guest.agent("guest-exec-status", pid=pid)["exited"]


def problem(world: World) -> str:
    (one,) = world.attachments()
    return one.problem


def test_a_guest_runs_again_when_there_is_room_and_what_it_wrote_is_there(world, small, fresh_guest):
    world.create(size=40 * MIB)
    world.attach(fresh_guest, error_policy=RESUME)
    with full(small):
        pid = begin_to_write(fresh_guest)
        until(lambda: stopped(fresh_guest), 60)
        until(lambda: "is full" in problem(world), 120, lambda: problem(world))
        assert "it is resumed when this is mended" in problem(world)
        assert stopped(fresh_guest), "not while it would only stop again"
    until(lambda: not stopped(fresh_guest), 120)
    until(lambda: ended(fresh_guest, pid), 60)
    device = fresh_guest.wait_disk("data").device
    assert fresh_guest.run(f"dd if={device} bs=1M count=24 2>/dev/null | tr -d x | wc -c") == "0", "nothing was lost"
    until(lambda: not problem(world), 120, lambda: problem(world))
    assert '"guest resumed after an I/O error"' in world.server.log.read_text()


def test_a_guest_is_left_where_its_attachment_says_so_or_its_pool_is_in_quarantine(world, small, fresh_guest):
    world.create(size=40 * MIB)
    attached = world.attach(fresh_guest, error_policy=STOP).attachment
    with full(small):
        pid = begin_to_write(fresh_guest)
        until(lambda: stopped(fresh_guest), 60)
    until(lambda: "resume the domain" in problem(world), 120, lambda: problem(world))
    assert stopped(fresh_guest)
    fresh_guest.resume()
    until(lambda: ended(fresh_guest, pid), 60)
    world.detach(attached.name)
    attached = world.attach(fresh_guest, error_policy=RESUME).attachment
    assert attached.options.error_policy == RESUME
    with full(small):
        fresh_guest.run(f"dd if=/dev/zero of={fresh_guest.wait_disk('data').device} bs=1M count=1 conv=fsync 2>/dev/null")
        world.snapshot("s1")  # a fresh layer: what was written is written anew
        pid = begin_to_write(fresh_guest)
        until(lambda: stopped(fresh_guest), 60)
        world.wire.pools.QuarantinePool(pool_pb2.QuarantinePoolRequest(name="pools/p", reason="suspect"), timeout=20)
    until(lambda: "suspect" in problem(world), 120, lambda: problem(world))
    assert stopped(fresh_guest)
    world.wire.pools.QuarantinePool(pool_pb2.QuarantinePoolRequest(name="pools/p", release=True), timeout=20)
    until(lambda: not stopped(fresh_guest), 120)
    until(lambda: ended(fresh_guest, pid), 60)
