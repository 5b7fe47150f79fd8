"""A logical volume as the disk of a QEMU, attached through libvirt: written, cut, grown and taken away under it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from tests.kernel.groups import Group
from tests.kernel.san import eventually, sh
from volgate.backend import PoolContext, SnapshotSpec, VolumeId
from volgate.connection import LocalBlock
from volgate.hosts.interface import AttachPlan, DetachOutcome
from volgate.hosts.local import LocalHost
from volgate.model import Bus, DiskOptions, Format, PathState, Redundancy, VolumeSpec
from volgate.operations.ways import redundancy
from volgate_plugins.lvm import Lvm, LvmSettings

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(400)]
MIB = 1 << 20
SECONDS = 120.0
DOMAIN = "guest"


@pytest.fixture
def host() -> Iterator[LocalHost]:
    made = LocalHost("here", "qemu:///system")
    yield made
    made.close()


def qemu(alias: str, command: str) -> str:
    """Let QEMU itself write or read, as for its guest."""
    return sh(f"""virsh -q qemu-monitor-command {DOMAIN} --hmp 'qemu-io -d {alias} "{command}"'""", timeout=SECONDS)


def first(path: str) -> bytes:
    return sh(f"dd if={path} bs=4096 count=1 iflag=direct 2>/dev/null | head -c 4", timeout=SECONDS).encode()


def test_a_logical_volume_is_the_disk_of_a_guest(host: LocalHost) -> None:
    group = Group()
    pool = Lvm(LvmSettings(group.name, "pool", (group.device,)), PoolContext("local", "00000000-0000-4000-8000-00000c0f0000"))
    made = pool.create_volume(VolumeSpec("disk", str(uuid.uuid4()), 4 * MIB, Format.RAW))
    volume = VolumeId(made.name, made.uid)
    connection = pool.connection(volume, host="here")
    assert isinstance(connection, LocalBlock)
    alias = f"ua-vg-{uuid.uuid4().hex[:8]}-lvm"
    plan = AttachPlan(str(uuid.uuid4()), alias, DOMAIN, connection, DiskOptions(bus=Bus.VIRTIO_SCSI))
    disk = host.attach(plan, timeout=SECONDS)
    assert disk.live and disk.source == connection.path
    qemu(alias, "write -P 65 0 4k")
    assert first(connection.path) == b"AAAA"

    cut = SnapshotSpec("cut", str(uuid.uuid4()))
    pool.create_snapshot(volume, cut)
    qemu(alias, "write -P 66 0 4k")
    assert first(pool.image(volume, cut.uid).source) == b"AAAA" and first(connection.path) == b"BBBB"

    pool.expand_volume(volume, 8 * MIB, online=True)
    assert host.resize(DOMAIN, alias, 8 * MIB, timeout=SECONDS) == 8 * MIB
    qemu(alias, f"write -P 67 {7 * MIB} 4k")
    ways = [*host.file_paths(connection, timeout=SECONDS), *host.paths(DOMAIN, alias, timeout=SECONDS)]
    assert [way.state for way in ways] == [PathState.ACTIVE_OPTIMIZED] * 2 and redundancy(ways) is not Redundancy.DOWN

    until = time.monotonic() + SECONDS
    while host.detach(DOMAIN, alias, disk.source, timeout=5.0) is not DetachOutcome.GONE:
        assert time.monotonic() < until
    pool.delete_snapshot(volume, cut.uid)
    eventually(lambda: "0" in sh(f"dmsetup info -c --noheadings -o open {connection.path}"))
    pool.delete_volume(volume)
    assert group.logicals() == {}
