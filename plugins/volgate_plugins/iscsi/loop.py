"""Files as block devices, by the kernel's loop driver: a target that is given the file itself would never notice that it grows."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

from volgate.backend.files import opened
from volgate.errors import Precondition

__all__ = ["LOOP_MAJOR", "attached", "grow"]

LOOP_MAJOR = 7
_GET_FREE, _CONFIGURE, _SET_CAPACITY = 0x4C82, 0x4C0A, 0x4C07
_AUTOCLEAR, _DIRECT_IO = 4, 16
_SECTOR = 512
_CONFIG = struct.Struct("II5Q4I64s64s32s2Q8Q")
_TRIES = 100


@contextmanager
def attached(path: str) -> Iterator[str]:
    """Give a block device that is the file. It stays while somebody has it open, and goes with the last: also if we are killed."""
    with opened(path, os.O_RDWR) as file:
        descriptor, device = _configured(file)
        try:
            yield device
        finally:
            os.close(descriptor)


def grow(device: str) -> None:
    """Have the device look how large its file is."""
    with opened(device, os.O_RDONLY) as descriptor:
        ioctl(descriptor, _SET_CAPACITY, 0)


def _configured(file: int) -> tuple[int, str]:
    flags = _AUTOCLEAR | _DIRECT_IO
    config = _CONFIG.pack(file, _SECTOR, *[0] * 5, *[0] * 3, flags, b"", b"", b"", *[0] * 10)
    for _ in range(_TRIES):  # another process may take the one that is free
        with opened("/dev/loop-control", os.O_RDWR) as control:
            device = f"/dev/loop{ioctl(control, _GET_FREE)}"
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(descriptor, _CONFIGURE, config)
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EBUSY:
                raise
        else:
            return descriptor, device
    raise Precondition("no loop device could be had: others take each one first", reason="PRECONDITION")
