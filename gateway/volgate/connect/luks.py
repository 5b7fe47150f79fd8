"""LUKS on a block device: what QEMU's driver opens is there, or is made of an empty device. Passphrases travel in memory alone."""

from __future__ import annotations

import contextlib
import os
import time

from volgate.backend.run import refuse_killed, run
from volgate.connection import BlockSource
from volgate.errors import DeadlineExceeded, Precondition, translate
from volgate.secret import Secret

__all__ = ["HEADER", "prepare"]

HEADER = 4 << 20
"""What must be empty before it is written to, bytes: more than a header of QEMU takes."""
_MAGIC = b"LUKS\xba\xbe"
_MAKING = b"volgate: LUKS is being made here"
_SECTOR = 512
_UNLOCK_MILLISECONDS = 500  # QEMU unlocks a disk while its guest stands still
_SECONDS = 60.0
_TRIES = 5


def prepare(source: BlockSource, passphrase: Secret, *, deadline: float) -> None:
    """Make LUKS of a device that begins with nothing but zeroes; one that has it is left as it is. `deadline` in monotonic seconds.

    Nobody else has the device. A repeat finishes what a dead one began. Raises Precondition (NOT_ENCRYPTED), DeadlineExceeded.
    """
    with translate(f"prepare {source.path} for LUKS"):
        disk = os.open(source.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fadvise(disk, 0, HEADER, os.POSIX_FADV_DONTNEED)  # QEMU writes past the cache
            found = os.pread(disk, HEADER, 0)
            if found.startswith(_MAGIC):
                return
            _require_empty(source, found)
            _write(disk, _header(passphrase, deadline))
        finally:
            os.close(disk)


def _require_empty(source: BlockSource, found: bytes) -> None:
    if found.startswith(_MAKING):
        return
    if any(found):
        told = f"{source.path} holds data that are no LUKS; attach it without a passphrase, or copy the data into a new encrypted volume"
        raise Precondition(told, reason="NOT_ENCRYPTED")
    if len(found) < HEADER:
        raise Precondition(f"{source.path} has {len(found)} bytes; LUKS needs more than {HEADER}", reason="NOT_ENCRYPTED")


def _write(disk: int, header: bytes) -> None:
    """The first sector last: until then it is neither LUKS nor anybody's data."""
    for offset, part in ((0, _MAKING.ljust(_SECTOR, b"\0")), (_SECTOR, header[_SECTOR:]), (0, header[:_SECTOR])):
        os.pwrite(disk, part, offset)
        os.fsync(disk)


def _header(passphrase: Secret, deadline: float) -> bytes:
    """A header with one key, made by QEMU's own tool in memory. Where clocks are coarse it may fail to measure how fast it is."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(Precondition):
            return _made(passphrase, deadline)
    return _made(passphrase, deadline)


def _made(passphrase: Secret, deadline: float) -> bytes:
    key, made = (os.memfd_create(f"volgate-luks-{name}", os.MFD_CLOEXEC) for name in ("key", "header"))
    try:
        os.write(key, passphrase.reveal().encode())
        options = f"key-secret=key,iter-time={_UNLOCK_MILLISECONDS}"
        argv = ["qemu-img", "create", "-q", "-f", "luks", "--object", "secret,id=key,file=/proc/self/fd/3", "-o", options]
        seconds = max(1.0, min(_SECONDS, deadline - time.monotonic()))
        done = run([*argv, "/proc/self/fd/4", "0"], timeout=seconds, fds=(key, made))
        if done.timed_out:
            raise DeadlineExceeded(f"qemu-img made no LUKS header within {seconds:.0f} s; repeat the call", reason="COMMAND_TIMEOUT")
        refuse_killed(done, "qemu-img")
        header = os.pread(made, HEADER, 0)
        if done.returncode or not header.startswith(_MAGIC):
            told = done.stderr.decode(errors="replace").strip()[-400:]
            raise Precondition(f"qemu-img makes no LUKS header: {told}", reason="COMMAND_FAILED")
        return header
    finally:
        os.close(key)
        os.close(made)
