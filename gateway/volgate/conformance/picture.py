"""The content of a volume as tests compare it: which pages hold what, everything else being zeroes."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from volgate.backend.run import run_checked
from volgate.conformance import rbd_image
from volgate.connection import Connection, LocalFile, RbdImage, as_file
from volgate.model import Format

__all__ = ["MIXED", "PAGE", "Picture", "of_file", "of_pieces", "read", "write"]

PAGE = 4096
"""Bytes; tests write whole pages of one value."""
MIXED = -1
"""Stands for a page that holds more than one value: no test ever wrote one."""
Picture = dict[int, int]
"""Offset of a page, bytes, to the one value of all its bytes; pages of zeroes are left out."""
_CHUNK = 1 << 20
_SECONDS = 60.0


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
    connection = as_file(connection)
    if connection.format is Format.RAW:
        descriptor = os.open(connection.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for offset, value in pages.items():
                os.pwrite(descriptor, bytes([value]) * PAGE, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    commands = [word for offset, value in pages.items() for word in ("-c", f"write -q -P {value} {offset} {PAGE}")]
    run_checked(["qemu-io", *commands, "-c", "flush", _described(connection)], doing="write to a volume", timeout=_SECONDS)


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
        end, offset = os.fstat(descriptor).st_size, 0
        while offset < end:
            try:
                offset = os.lseek(descriptor, offset, os.SEEK_DATA) // PAGE * PAGE
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            data = os.pread(descriptor, _CHUNK, offset)
            if not data:
                return
            yield offset, data
            offset += len(data)
    finally:
        os.close(descriptor)
