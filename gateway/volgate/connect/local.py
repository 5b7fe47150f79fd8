"""Files of this host: opened beneath the pool's directory without following links, their identity read through the descriptor."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from volgate.connection import FileSource, LocalFile
from volgate.errors import Precondition, translate

__all__ = ["connect"]


def connect(file: LocalFile) -> FileSource:
    """Prove that the file, its chain and its tag are what the record says. Raises Precondition (IDENTITY_MISMATCH), NotFound."""
    with translate(f"open {file.path}"):
        descriptor = _open_beneath(file.root, file.path)
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        expected = file.identity
        if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (expected.device, expected.inode):
            raise _mismatch(file.path, f"is {found.st_dev}:{found.st_ino}, recorded {expected.device}:{expected.inode}")
        for path, _ in file.chain:
            os.close(_open_beneath(file.root, path))
        tag = _open_beneath(file.root, file.tag)
    with os.fdopen(tag, "rb") as stream:
        uid = json.load(stream).get("uid")
    if uid != expected.uid:
        raise _mismatch(file.tag, f"names volume {uid}, recorded {expected.uid}")
    return FileSource(file.path, file.format, file.chain)


def _open_beneath(root: str, path: str) -> int:
    """Open a file below `root`, a component at a time; a link anywhere on the way is refused."""
    relative = Path(path).relative_to(root)
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
