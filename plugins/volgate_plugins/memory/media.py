"""The bytes of the simulated array: sparse raw files below one directory, each volume's in a folder of its own beside its owner tag.

Nothing is synced: the array forgets everything when it ends.
"""

# descriptors and flags are the subject here; paths stay plain strings
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH116

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable

from volgate.backend import OwnerTag, seal
from volgate.backend.files import can_share, copy_sparse, opened, remove_tree, share_blocks, write_all
from volgate.connection import FileIdentity, LocalFile
from volgate.errors import NotFound
from volgate.model import Format

__all__ = ["TAG", "Media", "copy", "grow", "make"]

TAG = "tag.json"
MARK = ".volgate-memory"
_THROUGH = 0o711  # QEMU's user must pass through
_ABANDONED, _PAUSE = 40, 0.05  # times and seconds between them


class Media:
    """The files of one array."""

    def __init__(self, root: str) -> None:
        """Take over a directory; what an earlier array left in it is removed, files at its top stay.

        Raises OSError, also if the directory is another array's, or something else's with folders of the same names.
        """
        self.root = root
        self._volumes, self._staging = f"{root}/volumes", f"{root}/staging"
        _folder(root)
        self._lock = _claim(root, (self._volumes, self._staging))
        self.erase()
        for folder in (self._volumes, self._staging):
            _folder(folder)
        self.shares = can_share(self._staging)

    def erase(self) -> None:
        """Remove everything but the files at the top."""
        remove_tree(self._volumes)
        remove_tree(self._staging)

    def path(self, stored_as: str, file: str) -> str:
        """Where a file of an object is."""
        return f"{self._volumes}/{stored_as}/{file}"

    def staged(self, name: str) -> str:
        """Where something is made before it is anybody's."""
        return f"{self._staging}/{name}"

    def begin(self, stored_as: str) -> str:
        """Make an empty folder for a new object and return it; what a dropped call left goes."""
        work = self.staged(stored_as)
        remove_tree(work)
        _folder(work)
        return work

    def publish(self, stored_as: str, tag: OwnerTag) -> None:
        """Give a folder that was begun its place, with its tag."""
        _write_tag(self.staged(stored_as), tag)
        os.rename(self.staged(stored_as), f"{self._volumes}/{stored_as}")

    def abandon(self, name: str) -> None:
        """Remove what was begun; a command that is just being killed may still write into it."""
        for _ in range(_ABANDONED):
            with contextlib.suppress(OSError):
                remove_tree(self.staged(name))
            if not os.path.lexists(self.staged(name)):
                return
            time.sleep(_PAUSE)

    def retag(self, stored_as: str, tag: OwnerTag) -> None:
        """Replace an object's tag; a reader sees the old or the new one."""
        _write_tag(f"{self._volumes}/{stored_as}", tag)

    def remove(self, stored_as: str) -> None:
        """Remove an object; nobody finds half of it."""
        gone = self.staged(f".gone-{stored_as}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self._volumes}/{stored_as}", gone)
        remove_tree(gone)

    def remove_file(self, stored_as: str, file: str) -> None:
        """Remove one file of an object."""
        _unlink(self.path(stored_as, file))

    def size(self, stored_as: str, file: str) -> tuple[int, int]:
        """Return the length of a file and the space that it takes, bytes. Raises FileNotFoundError."""
        found = os.stat(self.path(stored_as, file), follow_symlinks=False)
        return found.st_size, found.st_blocks * 512

    def location(self, stored_as: str, file: str, uid: str) -> LocalFile:
        """Say how a file is reached and what proves it. Raises NotFound."""
        path = self.path(stored_as, file)
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError as error:
            raise NotFound(f"{path} is missing: somebody removed it behind the array's back") from error
        identity = FileIdentity(found.st_dev, found.st_ino, uid)
        return LocalFile(path, Format.RAW, identity, self.root, self.path(stored_as, TAG), found.st_size)

    def try_to_write(self) -> None:
        """Raise OSError if nothing can be written."""
        probe = self.staged(".probe")
        with opened(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            write_all(descriptor, b"probe", 0)


def _claim(root: str, folders: tuple[str, ...]) -> int:
    """Hold the mark that says whose the directory is: nothing is ever removed from one that an array did not make."""
    mark = f"{root}/{MARK}"
    if not os.path.lexists(mark) and any(map(os.path.lexists, folders)):
        raise FileExistsError(errno.EEXIST, "it was not made by an array; give another directory", root)
    descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FileExistsError(errno.EEXIST, "another array keeps its bytes there; give another directory", root) from error
    return descriptor


def make(path: str, size: int, *, thick: bool) -> None:
    """Make an empty file, mode 0600; a thick one takes its space now. Raises OSError."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        _lengthen(descriptor, size, thick=thick)


def grow(path: str, size: int, *, thick: bool) -> None:
    """Make a file longer."""
    with opened(path, os.O_WRONLY) as descriptor:
        _lengthen(descriptor, size, thick=thick)


def copy(source: str, target: str, size: int, *, thick: bool, shares: bool, told: Callable[[float], None]) -> None:
    """Make `target` a copy of `source`, lengthened to `size`; `told` is called now and then and may raise to stop."""
    with opened(source, os.O_RDONLY) as old, opened(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as new:
        if shares and not thick:
            share_blocks(old, new)
        else:
            if thick:
                os.posix_fallocate(new, 0, size)
            copy_sparse(old, new, told)
        _lengthen(new, size, thick=thick)


def _lengthen(descriptor: int, size: int, *, thick: bool) -> None:
    if thick:
        os.posix_fallocate(descriptor, 0, size)
    os.ftruncate(descriptor, size)


def _write_tag(folder: str, tag: OwnerTag) -> None:
    scratch = f"{folder}/.{TAG}"
    with opened(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        write_all(descriptor, seal(tag), 0)
    os.rename(scratch, f"{folder}/{TAG}")


def _folder(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, _THROUGH)
        os.chmod(path, _THROUGH)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
