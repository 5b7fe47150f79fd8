"""Files of this host: opened beneath the pool's directory without following links, their identity read through the descriptor."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volgate.backend import unseal
from volgate.connection import FileSource, LocalFile
from volgate.errors import DataLoss, Precondition, translate
from volgate.model import Format

__all__ = ["connect", "unwritten"]

_TAG_MOST = 1 << 20  # bytes
_L1_AT, _L1 = 36, struct.Struct(">IQ")  # of the qcow2 header: entries of the L1 table, its offset
_L1_MOST = 1 << 22  # QEMU's own limit


def connect(file: LocalFile) -> FileSource:
    """Prove that the file, its chain and its tag are what the record says.

    Raises Precondition (IDENTITY_MISMATCH; UNSAFE_PATH: a link on the way, or outside the pool), NotFound, DataLoss (TAG_DAMAGED).
    """
    expected = file.identity
    with _opened(file.root, file.path) as descriptor:
        found = os.fstat(descriptor)
    if (found.st_dev, found.st_ino) != (expected.device, expected.inode):
        raise _mismatch(file.path, f"is {found.st_dev}:{found.st_ino}, recorded {expected.device}:{expected.inode}")
    for path, _ in file.chain:
        with _opened(file.root, path):
            pass
    with _opened(file.root, file.tag) as descriptor:
        data = os.read(descriptor, _TAG_MOST)
    try:
        tag, _ = unseal(data, Any)
    except DataLoss as error:
        raise DataLoss(f"{file.tag}: {error.message}; nothing was done", reason=error.reason) from error
    if tag.uid != expected.uid:
        raise _mismatch(file.tag, f"names volume {tag.uid}, recorded {expected.uid}")
    return FileSource(file.path, file.format, file.chain)


def unwritten(file: LocalFile) -> bool:
    """Whether a qcow2 layer holds no data of its own: every entry of its L1 table is empty."""
    with _opened(file.root, file.path) as descriptor:
        header = os.pread(descriptor, _L1_AT + _L1.size, 0)
        if file.format is not Format.QCOW2 or len(header) < _L1_AT + _L1.size:
            return False
        entries, offset = _L1.unpack_from(header, _L1_AT)
        return not any(os.pread(descriptor, 8 * min(entries, _L1_MOST), offset))


@contextmanager
def _opened(root: str, path: str) -> Iterator[int]:
    """Open a regular file below `root`, a component at a time; a link anywhere on the way is refused."""
    with translate(f"open {path}"):
        try:
            descriptor = _open_beneath(root, path)
        except ValueError:
            raise Precondition(f"{path} is not below the pool's directory {root}; nothing was done", reason="UNSAFE_PATH") from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise Precondition(f"{path} is reached through a link or a file; nothing was done", reason="UNSAFE_PATH") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _mismatch(path, "is no regular file")
            yield descriptor
        finally:
            os.close(descriptor)


def _open_beneath(root: str, path: str) -> int:
    relative = Path(path).relative_to(root)
    if ".." in relative.parts or not relative.name:
        raise ValueError(path)
    current = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in relative.parts[:-1]:
            step = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = step
        return os.open(relative.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=current)
    finally:
        os.close(current)


def _mismatch(path: str, how: str) -> Precondition:
    return Precondition(f"{path} {how}: it is not the file that was recorded; nothing was done", reason="IDENTITY_MISMATCH")
