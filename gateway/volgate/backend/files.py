"""What backends on files share: durable writes, one-rename publication, copies that share or skip what holds no data."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH104, PTH108, PTH116, PTH120

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator

from volgate.errors import InUse, OutOfRange

__all__ = [
    "allocated_bytes",
    "begin_writeback",
    "can_share",
    "copy_durably",
    "copy_sparse",
    "create_file",
    "lock_image",
    "opened",
    "publish_directory",
    "remove_tree",
    "share_blocks",
    "sync_directory",
    "write_durably",
]

_FICLONE = 0x40049409
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None)
_CHUNK = 16 << 20
_QEMU_LOCKS, _QEMU_LOCKS_LENGTH = 100, 200  # bytes 100 and on: permissions in use, 200 and on: permissions not shared
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


@contextlib.contextmanager
def opened(path: str, flags: int, mode: int = 0o600) -> Iterator[int]:
    """Open a descriptor (never through a symbolic link, not inherited) and close it at the end."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make the entries of a directory durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def write_durably(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically: readers see the old or the new bytes, and after the return the new ones survive a power cut.

    One writer per path at a time; what a dead one left is overwritten.
    """
    with _replacing(path) as scratch:
        create_file(scratch, ((0, data),), len(data), mode)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Give the path of a file to be made and synced; it is renamed to `path` when the block ends well."""
    folder, name = os.path.split(path)
    scratch = f"{folder}/.{name}.tmp"
    try:
        yield scratch
        os.rename(scratch, path)
    except BaseException:  # whatever it was, no scratch file stays behind
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    sync_directory(folder)


def create_file(path: str, pieces: tuple[tuple[int, bytes], ...], length: int, mode: int = 0o600) -> None:
    """Write a new file of `length` bytes (holes between the pieces) and make its content durable; an old one is overwritten."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as descriptor:
        os.ftruncate(descriptor, length)
        for offset, data in pieces:
            write_all(descriptor, data, offset)
        os.fsync(descriptor)


def lock_image(descriptor: int, path: str) -> None:
    """Hold all of QEMU's locks on an image until the descriptor is closed. Raises InUse if a QEMU has it open."""
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _QEMU_LOCKS, _QEMU_LOCKS_LENGTH, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError as error:
        raise InUse(f"{path} is open in another process (QEMU's image lock); stop what uses it") from error


def begin_writeback(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Let the kernel write what is dirty (length 0: to the end) while more is made: the fsync at the end then waits for little.

    A hint: where it is not heeded, nothing is lost.
    """
    _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes at `offset`."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(descriptor, rest, offset)
        offset += done
        rest = rest[done:]


def publish_directory(work: str, final: str) -> None:
    """Make a finished folder appear under its final name, durably, by one rename. Its files must be synced already."""
    sync_directory(work)
    os.rename(work, final)
    sync_directory(os.path.dirname(final))


def remove_tree(path: str) -> None:
    """Remove a folder and all in it; success if there is none."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def share_blocks(source: int, target: int) -> None:
    """Make `target` share all blocks of `source` (FICLONE). Raises OSError where the file system cannot."""
    fcntl.ioctl(target, _FICLONE, source)


def can_share(folder: str) -> bool:
    """Probe whether files in this folder can share blocks."""
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
        source.write(b"\1" * 4096)
        source.flush()
        try:
            share_blocks(source.fileno(), target.fileno())
        except OSError:
            return False
        return True


def allocated_bytes(path: str) -> int:
    """Return the space that a file takes."""
    return os.stat(path, follow_symlinks=False).st_blocks * 512


def copy_sparse(source: int, target: int, progress: Callable[[float], None] = lambda _: None) -> None:
    """Copy the data of `source` and leave its holes as holes; `target` is cut or grown to the same length. Not synced.

    `progress` is called with the done fraction and may raise to stop.
    """
    length = os.fstat(source).st_size
    os.ftruncate(target, length)
    for offset, end in _data_runs(source, length):
        at = offset
        while at < end:
            done = _copy_some(source, target, at, min(_CHUNK, end - at))
            begin_writeback(target, at, done)
            at += done
            progress(at / length)
    progress(1.0)


def copy_durably(source: str, target: str, length: int = 0, mode: int = 0o600) -> None:
    """Replace a file atomically by a copy: readers see the old or the whole new one, and after the return the new one survives a power cut.

    Holes stay holes; blocks are shared, or copied by the server, where the file system can. With `length` the copy is grown to so many
    bytes. One writer per target at a time; what a dead one left is overwritten. Raises OSError, OutOfRange (the source is longer).
    """
    with opened(source, os.O_RDONLY) as old:
        if 0 < length < (least := os.fstat(old).st_size):
            raise OutOfRange(f"{length} bytes are less than the {least} of what is copied", field="size")
        with _replacing(target) as scratch, opened(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as new:
            copy_sparse(old, new)
            if length:
                os.ftruncate(new, length)
            os.fsync(new)


def _data_runs(descriptor: int, length: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < length:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(length, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, end


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
        done = 0
    if done:
        return done
    data = os.pread(source, min(count, 1 << 20), offset)
    if not data:
        raise OSError(errno.EIO, "the file shrank while it was copied")
    write_all(target, data, offset)
    return len(data)
