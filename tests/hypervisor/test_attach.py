"""Attach and detach on a real guest."""

from __future__ import annotations

import pytest

from tests.hypervisor.rig import BUSES, Bench
from tests.labs.domain import Guest
from tests.plugins.directory_rig import MIB
from volgate.hosts.interface import DetachOutcome
from volgate.model import Bus, Format


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2])
def test_guest_reads_and_writes_what_is_attached(bench: Bench, guest: Guest, bus: Bus, kind: Format) -> None:
    volume = bench.volume(format=kind)
    bench.pool.write(volume, 0x5A, 0, 4096)
    wanted = bench.plan(guest.uuid, volume, bus=bus)
    done = bench.attach(wanted)
    assert done.live and done.config and done.source == wanted.connection.path and done.domain_name == guest.name
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and disk.size == 8 * MIB
    assert guest.run(f"head -c 4096 {disk.device} | tr -d 'Z' | wc -c") == "0"
    guest.run(f"tr '\\0' 'w' </dev/zero | dd of={disk.device} bs=1M seek=1 count=1 iflag=fullblock conv=fsync 2>/dev/null")
    assert bench.attach(wanted) == done, "a repeat finds what stands"
    assert bench.detach(wanted) is DetachOutcome.GONE
    assert guest.disks() == [] and guest.live_disks() == []
    bench.pool.reads(volume, ord("w"), MIB, MIB)
    bench.pool.reads(volume, 0x5A, 0, 4096)
    assert bench.detach(wanted) is DetachOutcome.GONE, "a repeat finds nothing to do"
