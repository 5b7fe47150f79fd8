"""A gateway with its folders, and short words for what tests need often."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.edge.server import Server
from tests.edge.wire import Wire
from volgate.v1 import snapshot_pb2, volume_pb2

__all__ = ["CONFIG", "MIB", "Place", "parts", "running"]

MIB = 1 << 20
CONFIG = """
[limits]
scan_seconds = 3600
check_seconds = 3600
[hosts.lab]
uri = "test:///default"
[hosts.deaf]
uri = "qemu+unix:///system?socket={top}/nobody"
[pools.main]
kind = "directory"
path = "{top}/main"
[pools.shallow]
kind = "directory"
path = "{top}/shallow"
max_depth = 2
[pools.gone]
kind = "directory"
path = "{top}/nowhere/gone"
create = false
[imports]
allowed_directories = ["{top}/images"]
[exports]
allowed_directories = ["{top}/exports"]
"""


class Place:
    """`test:///default` is libvirt's own driver for tests: it has one running domain, `test`, and no disks can be attached to it."""

    def __init__(self, top: Path, config: str = CONFIG) -> None:
        self.top, self.state, self.pool, self.images = top, top / "state", top / "main", top / "images"
        self.exports = top / "exports"
        self.images.mkdir()
        self.exports.mkdir()
        self.server = Server(self.state, config=config.format(top=top))
        self.wire = Wire(self.server.address)
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Serve. A new gateway trusts its records of a pool when that has answered once, so the one that is down was up before."""
        gone = self.top / "nowhere"
        (gone / "gone").mkdir(parents=True)
        command = [sys.executable, "-m", "volgate.cli", "rescan", "--state-dir", str(self.state), "--config", str(self.server.config)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        shutil.rmtree(gone)
        self.server.start()
        self.rest()

    def rest(self) -> None:
        """Wait until the hosts' first events have had their check of the pools, which tries a file in each."""
        seen, since = 0, time.monotonic()
        while time.monotonic() - since < 1.0:
            if (now := (self.pool / ".work").stat().st_mtime_ns) != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.02)

    def name(self, what: str = "v") -> str:
        """A name that no other test has."""
        return f"{what}{next(self._numbers)}"

    def volume(self, size: int = 4 * MIB, *, pool: str = "main", **more) -> volume_pb2.Volume:
        request = volume_pb2.CreateVolumeRequest(
            pool=f"pools/{pool}", volume_id=more.pop("volume_id", self.name()), size_bytes=size, **more
        )
        return self.wire.volumes.CreateVolume(request, timeout=30).volume

    def snapshot(self, of: volume_pb2.Volume, name: str = "s1") -> snapshot_pb2.Snapshot:
        request = snapshot_pb2.CreateSnapshotRequest(volume=of.name, snapshot_id=name)
        return self.wire.snapshots.CreateSnapshot(request, timeout=30).snapshot

    def held(self) -> tuple[volume_pb2.Volume, Any]:
        """A volume, and a running export that keeps it: what changes it has to wait until the export ends or is cancelled."""
        file = f"{self.name('fill')}.img"
        (self.pool / file).write_bytes(b"\1" * (32 * MIB))
        raw = volume_pb2.VOLUME_FORMAT_RAW
        adopt = volume_pb2.AdoptVolumeRequest(pool="pools/main", locator=file, volume_id=self.name("held"), format=raw)
        made = self.wire.volumes.AdoptVolume(adopt, timeout=30).volume
        stream = self.wire.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=made.name), timeout=60)
        next(stream)
        return made, stream

    def spool(self) -> list[Path]:
        return sorted((self.state / "spool").iterdir())


@contextmanager
def running(config: str = CONFIG) -> Iterator[Place]:
    """A gateway and its folders, removed afterwards."""
    top = Path(tempfile.mkdtemp(prefix="vg-edge-", dir="/tmp"))
    made = Place(top, config)
    made.start()
    try:
        yield made
    finally:
        made.wire.channel.close()
        made.server.stop()
        shutil.rmtree(top)


def parts(header: volume_pb2.ImportHeader, data: bytes, chunk: int = MIB) -> Iterator[volume_pb2.ImportVolumeRequest]:
    """An upload."""
    yield volume_pb2.ImportVolumeRequest(header=header)
    for offset in range(0, len(data), chunk):
        yield volume_pb2.ImportVolumeRequest(chunk=data[offset : offset + chunk])
