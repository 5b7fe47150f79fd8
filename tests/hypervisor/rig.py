"""A host over a lab's libvirt, a directory pool, and the attach plans between them."""

from __future__ import annotations

import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.labs.libvirtd import PrivateLibvirtd
from tests.plugins.directory_rig import MIB, Rig
from volgate.backend import VolumeId
from volgate.connection import LocalFile
from volgate.hosts.interface import AttachedDisk, AttachPlan, DetachOutcome, Presence
from volgate.hosts.local import LocalHost
from volgate.model import Bus, DiskOptions, Format

__all__ = ["BUSES", "Bench", "plan"]

BUSES = (Bus.VIRTIO_BLK, Bus.VIRTIO_SCSI)
SECONDS = 20.0


def plan(domain: str, connection: LocalFile, **options) -> AttachPlan:
    """An attempt under an alias of its own; the serial is told by the guest on either bus."""
    nonce = uuid.uuid4().hex[:8]
    options.setdefault("serial", f"s-{nonce}")
    alias = options.pop("alias", f"ua-vg-{nonce}")
    beside = options.pop("beside", ())
    return AttachPlan(f"a-{nonce}", alias, domain, connection, DiskOptions(**options), beside=beside)


class Bench:
    """What a test works with: `host` is the product, `pool` makes the volumes."""

    def __init__(self, libvirtd: PrivateLibvirtd, pool_dir: Path) -> None:
        self.host = LocalHost("local", libvirtd.uri)
        self.pool = Rig(pool_dir)
        self.ids: dict[str, VolumeId] = {}

    def volume(self, name: str = "vol", size: int = 8 * MIB, format: Format = Format.QCOW2) -> VolumeId:  # noqa: A002 - the field's name
        self.ids[name] = self.pool.create(name, size, format)
        return self.ids[name]

    def reach(self, volume: VolumeId) -> LocalFile:
        return self.pool.backend.connection(volume, host="local")

    def plan(self, domain: str, volume: VolumeId, **options) -> AttachPlan:
        return plan(domain, self.reach(volume), **options)

    def attach(self, wanted: AttachPlan, timeout: float = SECONDS) -> AttachedDisk:
        return self.host.attach(wanted, timeout=timeout)

    def detach(self, wanted: AttachPlan, timeout: float = SECONDS) -> DetachOutcome:
        return self.host.detach(wanted.domain, wanted.alias, wanted.connection.path, timeout=timeout)

    def seen(self, wanted: AttachPlan) -> Presence:
        return self.host.presence(wanted.domain, wanted.alias, wanted.connection.path, timeout=SECONDS)

    @staticmethod
    def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.02)

    @staticmethod
    def pause(seconds: float) -> None:
        time.sleep(seconds)

    @staticmethod
    def bytes_of(image: LocalFile, length: int) -> bytes:
        """The first bytes of an image, read past the guest by QEMU's own tool."""
        argv = ["qemu-img", "dd", "-f", image.format.value, "-O", "raw", "bs=512", f"count={-(-length // 512)}", f"if={image.path}"]
        with tempfile.NamedTemporaryFile() as out:
            subprocess.run([*argv, f"of={out.name}"], check=True, capture_output=True)
            return Path(out.name).read_bytes()[:length]
