"""The content of a volume as tests compare it: which pages hold what, everything else being zeroes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from volgate.backend.run import run_checked
from volgate.backend.secrets import resolve
from volgate.conformance import rbd_image
from volgate.connect.iscsi import Iscsi
from volgate.connection import Connection, IscsiLun, LocalBlock, LocalFile, RbdImage, as_file
from volgate.model import Format

__all__ = ["MIXED", "PAGE", "Picture", "held", "of_file", "of_pieces", "read", "write"]

PAGE = 4096
"""Bytes; tests write whole pages of one value."""
MIXED = -1
"""Stands for a page that holds more than one value: no test ever wrote one."""
Picture = dict[int, int]
"""Offset of a page, bytes, to the one value of all its bytes; pages of zeroes are left out."""
_CHUNK = 1 << 20
_SECONDS = 60.0
_LOCK = struct.Struct("hhqqi4x")
_WRITER = 101
"""The byte that a QEMU locks which may write (RAW_LOCK_PERM_BASE and BLK_PERM_WRITE)."""


def of_pieces(pieces: Iterable[tuple[int, bytes]]) -> Picture:
    """Look at pieces of content, each at its offset; what no piece covers is zeroes."""
    found: Picture = {}
    for start, data in pieces:
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            if any(page):
                found[start + at] = page[0] if page == page[:1] * len(page) else MIXED
    return found


def read(connection: Connection) -> Picture:
    """Read a volume or a snapshot as a guest would, through exactly the layers that its connection names."""
    if isinstance(connection, RbdImage):
        return of_pieces(rbd_image.read(connection))
    if isinstance(connection, LocalBlock):
        return of_file(connection.path)
    if isinstance(connection, IscsiLun):
        with _logged_in(connection) as path:
            return of_file(path)
    connection = as_file(connection)
    if connection.format is Format.RAW:
        return of_file(connection.path)
    with tempfile.TemporaryDirectory(prefix="volgate-conform-") as folder:
        whole = f"{folder}/raw"
        run_checked(["qemu-img", "convert", "-O", "raw", _described(connection), whole], doing="read a volume", timeout=_SECONDS)
        return of_file(whole)


def of_file(path: str) -> Picture:
    """Look at a raw image."""
    return of_pieces(_of_file(path))


def write(connection: Connection, pages: Mapping[int, int]) -> None:
    """Write pages as a guest would, durably."""
    if isinstance(connection, RbdImage):
        rbd_image.write(connection, {offset: bytes([value]) * PAGE for offset, value in pages.items()})
        return
    if isinstance(connection, IscsiLun):
        with _logged_in(connection) as path:
            _write_raw(path, pages)
        return
    connection = connection if isinstance(connection, LocalBlock) else as_file(connection)
    if connection.format is Format.RAW:
        _write_raw(connection.path, pages)
        return
    assert isinstance(connection, LocalFile), "devices are raw"
    commands = [word for offset, value in pages.items() for word in ("-c", f"write -q -P {value} {offset} {PAGE}")]
    run_checked(["qemu-io", *commands, "-c", "flush", _described(connection)], doing="write to a volume", timeout=_SECONDS)


def _write_raw(path: str, pages: Mapping[int, int]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset, value in pages.items():
            os.pwrite(descriptor, bytes([value]) * PAGE, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _host() -> Iscsi:
    """One for all threads: LUNs of one target take turns."""
    return Iscsi()


@contextlib.contextmanager
def _logged_in(lun: IscsiLun) -> Iterator[str]:
    """Have a LUN as a device of this machine, as a host has it; nothing of it stays."""
    host = _host()
    references = (lun.chap.secret, lun.chap.target_secret) if lun.chap else ()
    secrets = {reference: resolve(reference) for reference in references if reference}
    try:
        yield host.connect(lun, secrets, deadline=time.monotonic() + _SECONDS).path
    finally:
        host.disconnect(lun, deadline=time.monotonic() + _SECONDS)


@contextlib.contextmanager
def held(connection: Connection) -> Iterator[None]:
    """Have a volume open for writing, as a client of its own: of a file with QEMU's lock on it."""
    with contextlib.ExitStack() as stack:
        if isinstance(connection, RbdImage):
            stack.enter_context(rbd_image.opened(connection, read_only=False))
        else:
            descriptor = os.open(as_file(connection).path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _WRITER, 1, 0))
        yield


def _described(connection: LocalFile) -> str:
    """Name an image and exactly the layers below it: what a header says is not followed."""
    node: dict[str, Any] | None = None
    for path, kind in reversed(((connection.path, connection.format), *connection.chain)):
        below = {"backing": node} if kind is Format.QCOW2 else {}
        node = {"driver": str(kind), "file": {"driver": "file", "filename": path}, **below}
    return f"json:{json.dumps(node)}"


def _of_file(path: str) -> Iterator[tuple[int, bytes]]:
    """The data of a sparse file; pages are never cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end, offset = os.lseek(descriptor, 0, os.SEEK_END), 0  # a device's too
        while offset < end:
            try:
                offset = os.lseek(descriptor, offset, os.SEEK_DATA) // PAGE * PAGE
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno != errno.EINVAL:  # a device knows no holes
                    raise
            data = os.pread(descriptor, _CHUNK, offset)
            if not data:
                return
            yield offset, data
            offset += len(data)
    finally:
        os.close(descriptor)
