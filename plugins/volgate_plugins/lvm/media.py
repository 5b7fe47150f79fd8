"""The bytes of a logical volume: its device, proven, and what is written to it or read from it."""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

from volgate.backend.files import opened, sync_directory, write_all
from volgate.backend.image import convert
from volgate.errors import NotFound, OutOfRange, Precondition, translate
from volgate.model import Format

__all__ = ["device", "extract", "fill", "zero"]

_CHUNK = 1 << 20
_ZERO_AT_ONCE = 64 << 20
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F
Progress = Callable[[float], None]


def device(dm_uuid: str) -> str:
    """The path that names a logical volume for good. It is there while the volume is active."""
    return f"/dev/disk/by-id/dm-uuid-{dm_uuid}"


@contextmanager
def _open(dm_uuid: str, flags: int, doing: str) -> Iterator[int]:
    """Open a logical volume, and prove through the descriptor that it is the one. Raises NotFound, Precondition (IDENTITY_MISMATCH)."""
    path = device(dm_uuid)
    with translate(doing), opened(str(Path(path).resolve()), flags) as descriptor:  # udev's name is a link
        found = os.fstat(descriptor)
        told = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/dm/uuid")
        if not stat.S_ISBLK(found.st_mode) or not told.exists() or told.read_text(encoding="ascii").strip() != dm_uuid:
            raise Precondition(f"{doing}: {path} is another device than its name says; nothing was done", reason="IDENTITY_MISMATCH")
        yield descriptor


def zero(dm_uuid: str, start: int, end: int, doing: str) -> None:
    """Let a stretch of a volume read as zeroes, durably. Bytes."""
    with _open(dm_uuid, os.O_WRONLY, doing) as descriptor:
        for at in range(start, end, _ZERO_AT_ONCE):
            ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", at, min(_ZERO_AT_ONCE, end - at)))
        os.fsync(descriptor)


def fill(dm_uuid: str, size: int, path: str, source_format: Format, *, thin: bool, progress: Progress, doing: str) -> None:
    """Write an image file into a volume of `size` bytes, over whatever it holds, durably.

    Raises OutOfRange, and what `convert` and `progress` raise.
    """
    progress(0.0)
    if source_format is not Format.RAW:
        with tempfile.TemporaryDirectory(prefix="volgate-lvm-") as folder:
            raw = f"{folder}/raw"
            convert(path, source_format, raw, Format.RAW, maximum=size, durable=False, progress=lambda done: progress(done / 2))
            _fill(dm_uuid, size, raw, thin, lambda done: progress(0.5 + done / 2), doing)
    else:
        _fill(dm_uuid, size, path, thin, progress, doing)
    progress(1.0)


def _fill(dm_uuid: str, size: int, path: str, thin: bool, progress: Progress, doing: str) -> None:
    with translate(doing), opened(path, os.O_RDONLY) as source, _open(dm_uuid, os.O_WRONLY, doing) as target:
        length = os.fstat(source).st_size
        if length > size:
            raise OutOfRange(f"{doing}: the image has {length} bytes, the volume {size}")
        ioctl(target, _BLKDISCARD if thin else _BLKZEROOUT, struct.pack("QQ", 0, size))  # of an earlier filling
        for at in range(0, length, _CHUNK):
            data = os.pread(source, _CHUNK, at)
            if any(data):
                write_all(target, data, at)
            progress(min(0.999, (at + len(data)) / length))
        os.fsync(target)


def extract(dm_uuid: str, size: int, path: str, progress: Progress, doing: str) -> None:
    """Write what a volume holds to a new sparse file, durably."""
    progress(0.0)
    with translate(doing), _open(dm_uuid, os.O_RDONLY, doing) as source, opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as target:
        os.ftruncate(target, size)
        for at in range(0, size, _CHUNK):
            data = os.pread(source, min(_CHUNK, size - at), at)
            if not data:
                raise NotFound(f"{doing}: the volume ended at {at} of {size} bytes")
            if any(data):
                write_all(target, data, at)
            progress(min(0.999, (at + len(data)) / size))
        os.fsync(target)
        sync_directory(str(Path(path).absolute().parent))
    progress(1.0)
