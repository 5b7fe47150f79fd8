"""Block devices of this host's device mapper: their identity is read through the opened descriptor."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from volgate.connection import BlockSource, LocalBlock
from volgate.errors import Precondition, VolgateError, translate
from volgate.model import Path as IoPath
from volgate.model import PathState

__all__ = ["connect", "paths"]

_SYSFS = Path("/sys/dev/block")


def connect(device: LocalBlock) -> BlockSource:
    """Prove that the device is what the record says. Raises Precondition (IDENTITY_MISMATCH), NotFound."""
    with translate(f"open {device.path}"):
        descriptor = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            told = _dm_uuid(found) if stat.S_ISBLK(found.st_mode) else "no block device"
            size = os.lseek(descriptor, 0, os.SEEK_END) if told == device.dm_uuid else 0
        finally:
            os.close(descriptor)
    if told != device.dm_uuid:
        raise Precondition(
            f"{device.path} is {told or 'no device of device mapper'}, recorded {device.dm_uuid}: nothing was done",
            reason="IDENTITY_MISMATCH",
        )
    if size < device.size:
        raise Precondition(f"{device.path} has {size} bytes, recorded {device.size}: nothing was done", reason="IDENTITY_MISMATCH")
    return BlockSource(device.path, device.format)


def paths(device: LocalBlock, host: str) -> list[IoPath]:
    """The device as it is now, and those that it lies on."""
    try:
        connect(device)
    except VolgateError as error:
        return [IoPath("block", host, device.path, device.path, PathState.FAILED, last_error=error.message)]
    number = os.stat(device.path).st_rdev  # noqa: PTH116  # one call style for all of them
    folder = _SYSFS / f"{os.major(number)}:{os.minor(number)}"
    state, problem = PathState.ACTIVE_OPTIMIZED, ""
    if (folder / "dm/suspended").read_text(encoding="ascii").strip() == "1":
        state, problem = PathState.FAILED, f"{device.path} is suspended: dmsetup resume lets it go on"
    below = sorted(entry.name for entry in (folder / "slaves").iterdir())
    return [
        IoPath(
            "block", host, device.path, device.path, state, last_error=problem, facts={"dm_uuid": device.dm_uuid, "below": ",".join(below)}
        )
    ]


def _dm_uuid(found: os.stat_result) -> str:
    try:
        return (_SYSFS / f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/dm/uuid").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
