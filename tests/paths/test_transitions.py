"""ListPaths told by its transitions: a healthy way, and each way in which it stops being one, on real file systems."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.plugins.directory_rig import mounted
from volgate.v1 import attachment_pb2, operation_pb2, volume_pb2

MIB = 1 << 20
VOLUME = "pools/small/volumes/data"
ACTIVE = "PATH_STATE_ACTIVE_OPTIMIZED"
FAILED = "PATH_STATE_FAILED"


class Ways:
    """A served pool on a small ext4 of its own, and the questions that the tests put."""

    def __init__(self, wire: Wire, mount: Path) -> None:
        self.wire = wire
        self.mount = mount
        self.pool = mount / "pool"

    def create(self, size: int = 8 * MIB) -> Path:
        """Make the volume and return its only file."""
        request = volume_pb2.CreateVolumeRequest(pool="pools/small", volume_id="data", size_bytes=size, format=volume_pb2.VOLUME_FORMAT_RAW)
        self.wire.volumes.CreateVolume(request, timeout=20)
        return next((self.pool / "volumes").glob("data.*/*.raw"))

    def states(self, name: str = VOLUME) -> dict[str, str]:
        """The state of each station, and `whole`."""
        answer = self.ask(name)
        found = {path.transport: attachment_pb2.PathState.Name(path.state) for path in answer.paths}
        return {**found, "whole": attachment_pb2.Redundancy.Name(answer.redundancy)}

    def errors(self, name: str = VOLUME) -> str:
        return "; ".join(path.last_error for path in self.ask(name).paths if path.last_error)

    def station(self, transport: str, name: str = VOLUME) -> attachment_pb2.Path:
        return next(path for path in self.ask(name).paths if path.transport == transport)

    def ask(self, name: str) -> attachment_pb2.ListPathsResponse:
        return self.wire.attachments.ListPaths(attachment_pb2.ListPathsRequest(name=name), timeout=20)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk.img", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        folder.chmod(0o711)
        yield folder


@pytest.fixture
def lab(mount: Path) -> Iterator[PrivateLibvirtd]:
    """A libvirtd that sees the mount: it has a mount namespace of its own, made when it starts."""
    with PrivateLibvirtd(security="off") as running:
        yield running


@pytest.fixture
def ways(mount: Path, tmp_path: Path, lab: PrivateLibvirtd) -> Iterator[Ways]:
    config = f'[hosts.local]\nuri = "{lab.uri}"\n[pools.small]\nkind = "directory"\npath = "{mount}/pool"\ndefault_format = "raw"\n'
    server = Server(tmp_path / "state", config=config).start()
    try:
        with Wire(server.address) as wire:
            yield Ways(wire, mount)
    finally:
        server.stop()


def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def test_a_healthy_way_names_its_stations(ways):
    file = ways.create()
    assert ways.states() == {"image": ACTIVE, "file": ACTIVE, "filesystem": ACTIVE, "whole": "REDUNDANCY_SINGLE"}
    station = ways.station("filesystem")
    assert station.facts["type"] == "ext4"
    assert station.facts["mount"] == str(ways.mount)
    assert 0 < int(station.facts["free_bytes"]) < 64 * MIB
    assert station.device.startswith("/dev/loop")
    assert ways.station("file").device == str(file)


def test_a_read_only_remount_is_down_and_comes_back(ways):
    ways.create()
    subprocess.run(["mount", "-o", "remount,ro", ways.mount], check=True)
    assert ways.states()["filesystem"] == FAILED
    assert ways.states()["whole"] == "REDUNDANCY_DOWN"
    assert "read-only" in ways.errors()
    subprocess.run(["mount", "-o", "remount,rw", ways.mount], check=True)
    assert ways.states()["whole"] == "REDUNDANCY_SINGLE"


def test_a_missing_file_is_down(ways):
    file = ways.create()
    file.rename(file.with_suffix(".away"))
    states = ways.states()
    assert states["file"] == FAILED
    assert states["whole"] == "REDUNDANCY_DOWN"
    assert file.name in ways.errors()
    file.with_suffix(".away").rename(file)
    assert ways.states()["whole"] == "REDUNDANCY_SINGLE"


def test_no_space_under_a_guest_is_counted_and_space_brings_it_back(ways, lab):
    guest = Guest(lab, "paths")
    ways.create(32 * MIB)
    request = attachment_pb2.AttachVolumeRequest(
        volume=VOLUME,
        domain=guest.name,
        options=attachment_pb2.DiskOptions(serial="small", error_policy=attachment_pb2.ERROR_POLICY_REPORT),
    )
    name = ways.wire.attachments.AttachVolume(request, timeout=60).attachment.name
    disk = guest.wait_disk("small")
    assert disk
    states = ways.states(name)
    assert states["libvirt"] == ACTIVE
    station = ways.station("libvirt", name)
    assert station.facts["address"].startswith("pci:")
    assert station.facts["alias"].startswith("ua-vg-")
    assert station.errors == 0

    # random bytes: zeros would be unmapped and need no space
    ballast = ways.mount / "ballast"
    with ballast.open("wb") as full, pytest.raises(OSError):
        while True:
            full.write(bytes(MIB))
            os.fsync(full.fileno())
    assert ways.states(name)["filesystem"] == FAILED
    assert "full" in ways.errors(name)
    guest.sh(f"dd if=/dev/urandom of={disk.device} bs=1M count=32 oflag=direct 2>/dev/null; sync")
    until(lambda: ways.station("libvirt", name).errors > 0)

    ballast.unlink()
    assert ways.states(name)["filesystem"] == ACTIVE
    guest.run(f"dd if=/dev/urandom of={disk.device} bs=1M count=32 oflag=direct 2>/dev/null && sync")
    assert ways.states(name)["whole"] == "REDUNDANCY_DEGRADED", "errors that were counted stay in sight"

    ways.wire.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=name, wait_seconds=20), timeout=60)
    running = ways.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(unfinished_only=True), timeout=20)
    assert not running.operations
    assert guest.wait_disk("small", present=False) is None
    guest.disconnect()
