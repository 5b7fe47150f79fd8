"""A directory pool and real tools around it, for the tests of the plugin."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from volgate.backend import PoolContext, SnapshotSpec, VolumeId
from volgate.model import Format, Source, SourceKind, VolumeSpec
from volgate_plugins.directory import Directory, DirectorySettings

MIB = 1 << 20


class Rig:
    def __init__(self, path: Path, **settings) -> None:
        self.path = path
        self.settings = DirectorySettings(path=str(path), **settings)
        self.reopen()

    def reopen(self) -> None:
        self.backend = Directory.open(self.settings, PoolContext("p", "gateway-1"))

    def spec(self, name: str, size: int = 8 * MIB, format: Format = Format.QCOW2, **more) -> VolumeSpec:  # noqa: A002 - the field's name
        return VolumeSpec(name=name, uid=more.pop("uid", None) or str(uuid.uuid4()), size=size, format=format, **more)

    def create(self, name: str, size: int = 8 * MIB, format: Format = Format.QCOW2, **more) -> VolumeId:  # noqa: A002 - as above
        return VolumeId(name, self.backend.create_volume(self.spec(name, size, format, **more)).uid)

    def clone(self, name: str, of: VolumeId, snapshot: str = "", size: int = 8 * MIB, **more) -> VolumeId:
        kind = SourceKind.SNAPSHOT if snapshot else SourceKind.VOLUME
        return self.create(name, size, source=Source(kind, of.name, of.uid, "s", snapshot), **more)

    def snapshot(self, volume: VolumeId, name: str) -> str:
        return self.backend.create_snapshot(volume, SnapshotSpec(name, str(uuid.uuid4()))).uid

    def write(self, volume: VolumeId, pattern: int, offset: int = 0, length: int = MIB) -> None:
        found = self.backend.connection(volume, host="h")
        io(found.format, f"write -P {pattern} {offset} {length}", found.path)

    def reads(self, volume: VolumeId, pattern: int, offset: int = 0, length: int = MIB, snapshot: str = "") -> None:
        found = self.backend.image(volume, snapshot)
        io(found.format, f"read -P {pattern} {offset} {length}", found.path, "-r")

    def files(self) -> set[str]:
        return {str(p.relative_to(self.path)) for p in self.path.rglob("*")}

    def checked(self) -> None:
        for path in self.path.glob("volumes/*/*.qcow2"):
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True, capture_output=True)


def io(kind: str, command: str, path: str, *options: str) -> None:
    done = subprocess.run(["qemu-io", *options, "-f", kind, "-c", command, path], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "Pattern verification failed" not in done.stdout, (command, done.stdout, done.stderr)


@contextmanager
def mounted(image: Path, kind: str, size: int, folder: Path):
    with image.open("wb") as file:
        file.truncate(size)
    options = ["-m", "reflink=1"] if kind == "xfs" else ["-m", "0"]
    subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    """What a test left behind a frozen file system may need a moment to be gone. Raises CalledProcessError; nothing stays mounted."""
    deadline = time.monotonic() + 10
    while (done := subprocess.run(["umount", folder], check=False, capture_output=True)).returncode and time.monotonic() < deadline:
        time.sleep(0.1)
    if done.returncode:
        subprocess.run(["umount", "--lazy", folder], check=True)
    done.check_returncode()


@contextmanager
def filled_up(folder: Path):
    """Leave no block of a file system."""
    source = folder / "filler"
    try:
        with source.open("wb") as file:
            for chunk in (65536, 4096, 4096):  # the last blocks go only to small writes, and some come back at a sync
                with suppress(OSError):
                    while True:
                        os.write(file.fileno(), b"x" * chunk)
                os.fsync(file.fileno())
        yield
    finally:
        source.unlink()
