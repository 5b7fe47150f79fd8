"""The reference for mutations: the same files with the same tag, the same calls and fsyncs, and nothing around them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


class NativePool:
    """Volumes as folders, made in `.work`, published by one rename, taken away by one rename: what the directory plugin does."""

    def __init__(self, folder: Path, tag: bytes) -> None:
        self.volumes, self.work, self.trash = (folder / name for name in ("volumes", "work", "trash"))
        for made in (self.volumes, self.work, self.trash):
            made.mkdir()
        self.tag = tag

    def path(self, name: str, kind: str) -> Path:
        return self.volumes / name / f"0000.{kind}"

    def create(self, name: str, kind: str, size: int) -> None:
        work, final = self.work / name, self.volumes / name
        work.mkdir(0o711)
        image = work / f"0000.{kind}"
        if kind == "qcow2":
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)], check=True)
        else:
            image.touch(0o600)
            os.truncate(image, size)
        sync(image)
        self._write_tag(work / "volume.json")
        sync(work)
        work.rename(final)
        sync(self.volumes)

    def delete(self, name: str) -> None:
        gone = self.trash / name
        (self.volumes / name).rename(gone)
        sync(self.volumes)
        shutil.rmtree(gone)

    def expand(self, name: str, kind: str, size: int) -> None:
        image = self.path(name, kind)
        if kind == "qcow2":
            subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", image, str(size)], check=True)
        else:
            os.truncate(image, size)
        sync(image)
        scratch = image.with_name("volume.json.tmp")
        self._write_tag(scratch)
        scratch.rename(image.with_name("volume.json"))
        sync(image.parent)

    def _write_tag(self, path: Path) -> None:
        path.write_bytes(self.tag)
        sync(path)


def sync(path: Path) -> None:
    """Make a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
