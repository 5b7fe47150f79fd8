"""libvirt as Debian ships it: QEMU as libvirt-qemu in a namespace of its own, owners changed and given back."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypervisor.rig import BUSES, SECONDS, Bench
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.plugins.directory_rig import MIB
from volgate.backend import SnapshotSpec
from volgate.errors import InUse
from volgate.hosts.interface import DetachOutcome
from volgate.model import Bus, Format


@pytest.fixture
def safe(default_libvirtd: PrivateLibvirtd, pool_dir: Path) -> Iterator[Bench]:
    bench = Bench(default_libvirtd, pool_dir)
    yield bench
    bench.host.close()


def owner(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_uid, found.st_mode & 0o777


def test_qemu_is_not_root(default_guest: Guest) -> None:
    assert os.stat(f"/proc/{default_guest.qemu_pid()}").st_uid != 0


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2])
def test_disk_is_attached_written_grown_and_given_back(safe: Bench, default_guest: Guest, bus: Bus, kind: Format) -> None:
    guest = default_guest
    wanted = safe.plan(guest.uuid, safe.volume(format=kind), bus=bus)
    path = wanted.connection.path
    before = owner(path)
    assert before == (0, 0o600)
    safe.attach(wanted)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and owner(path)[0] == os.stat(f"/proc/{guest.qemu_pid()}").st_uid, "libvirt gave it to its QEMU"
    guest.run(f"yes there | dd of={disk.device} bs=4096 count=1 iflag=fullblock conv=fsync 2>/dev/null")
    assert safe.host.resize(guest.uuid, wanted.alias, 16 * MIB, timeout=SECONDS) == 16 * MIB
    assert safe.attach(wanted).live, "the proof of identity still holds"
    assert safe.detach(wanted) is DetachOutcome.GONE
    assert owner(path) == before
    assert safe.bytes_of(wanted.connection, 6) == b"there\n"


def test_snapshots_and_their_layers_are_readable_for_qemu(safe: Bench, default_guest: Guest) -> None:
    guest, volume = default_guest, safe.volume()
    safe.pool.write(volume, 0x61, 0, 4096)
    safe.pool.snapshot(volume, "below")
    wanted = safe.plan(guest.uuid, volume)
    safe.attach(wanted)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and guest.run(f"head -c 4 {disk.device}") == "aaaa"
    spec = SnapshotSpec("s", str(uuid.uuid4()))
    overlay = safe.pool.backend.prepare_overlay(volume, spec)
    assert owner(overlay.top.path) == (0, 0o600)
    safe.host.switch_overlay(guest.uuid, wanted.alias, overlay.top, overlay.base, quiesce=True, timeout=SECONDS)
    safe.pool.backend.finish_overlay(volume, spec)
    guest.run(f"yes on top | dd of={disk.device} bs=4096 count=1 iflag=fullblock conv=fsync 2>/dev/null")
    top = overlay.top.path
    assert safe.host.detach(guest.uuid, wanted.alias, top, timeout=SECONDS) is DetachOutcome.GONE
    again = safe.plan(guest.uuid, volume)
    assert len(again.connection.chain) == 2 and again.connection.path == top
    safe.attach(again)
    disk = guest.wait_disk(again.options.serial)
    assert disk and guest.run(f"head -c 6 {disk.device}") == "on top"
    assert safe.detach(again) is DetachOutcome.GONE
    safe.pool.checked()
    for layer in (top, *(path for path, _ in again.connection.chain)):
        assert owner(layer)[1] == 0o600


def test_a_file_in_use_is_refused_and_stays_readable(safe: Bench, default_guest: Guest) -> None:
    volume = safe.volume()
    wanted = safe.plan(default_guest.uuid, volume)
    safe.attach(wanted)
    disk = default_guest.wait_disk(wanted.options.serial)
    with pytest.raises(InUse):
        safe.attach(safe.plan(default_guest.uuid, volume))
    assert disk
    default_guest.run(f"dd if=/dev/zero of={disk.device} bs=4096 count=4 oflag=direct 2>/dev/null")
    assert safe.detach(wanted) is DetachOutcome.GONE
    assert default_guest.disks() == []
