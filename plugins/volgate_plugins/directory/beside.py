"""Who else works in this pool: other controllers of the gateway serve it too, and hold single volumes while they work on them.

Locks of bytes in one file, which the kernel gives free with the process that held them: the first byte is shared by all who work on
anything, and one byte for each name is held by whoever works on it. The file is open for as long as that only: a file system whose
pool is idle can be unmounted.
"""

# descriptors are the subject here; paths stay plain strings

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator

from volgate.errors import Busy, from_os_error

__all__ = ["FILE", "Beside"]

FILE = ".volgate-locks"
_FLOCK = "hhqqi4x"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NONE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system without locks is for one controller, as pools were before
_NOTHING = (errno.ENOENT, errno.EROFS)  # not mounted, or not to be changed: whoever looks for the volume, or changes it, says what is wrong
_PATIENCE = 60.0
_SHORTEST, _LONGEST = 0.001, 0.05


class Beside:
    """The lock file of one pool."""

    def __init__(self, root: str) -> None:
        """Nothing is opened yet."""
        self._path = f"{root}/{FILE}"

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Say whether nobody works in the pool; until the end of the block nobody begins then. Raises OSError."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _try(descriptor, fcntl.F_WRLCK, 0)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold a name against other controllers; the caller keeps its own threads apart. Raises Busy after a minute, others by errno."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NOTHING:
                raise from_os_error(error, f"lock {name}") from error
            yield
            return
        try:
            _take(descriptor, fcntl.F_RDLCK, 0, "the pool is opened")
            _take(descriptor, fcntl.F_WRLCK, _place(name), f"{name} is worked on")
            yield
        finally:
            os.close(descriptor)  # and its locks go


def _take(descriptor: int, kind: int, place: int, told: str) -> None:
    deadline, pause = time.monotonic() + _PATIENCE, _SHORTEST
    while not _try(descriptor, kind, place):
        if time.monotonic() > deadline:
            raise Busy(f"{told} by another controller for {_PATIENCE:g} s; come back later")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)


def _try(descriptor: int, kind: int, place: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, place, 1, 0))
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _NONE:
            raise from_os_error(error, "lock a name in the pool") from error
    return True


def _place(name: str) -> int:
    return 1 + (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 2)
