"""Libvirt's saved state of a domain (`virsh save`): give a copy of it another name and uuid.

The file is a header, an XML of fixed room, and QEMU's migration stream. Libvirt refuses to restore under another name or uuid
than the XML's, the stream itself knows neither; so changing the XML in a copy lets one saved guest become many.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

MAGIC = b"LibvirtQemudSave"
HEADER = struct.Struct("<16sIIIII")  # magic, version, room for XML and cookie, was running, compression, the cookie's offset
HEADER_SIZE = 16 + 19 * 4


class NotASavedState(Exception):
    """The file is not one, or its XML has no room."""


def copy_renamed(source: Path, target: Path, words: dict[str, str]) -> None:
    """Copy a saved state, replacing words of its XML."""
    with source.open("rb") as reading, target.open("wb") as writing:
        header = reading.read(HEADER_SIZE)
        magic, _, room, _, _, cookie = HEADER.unpack_from(header)
        if magic != MAGIC:
            raise NotASavedState(f"{source} does not begin with {MAGIC!r}")
        data = reading.read(room)
        end = cookie or room
        writing.write(header + _replaced(data[:end], words) + data[end:])
        writing.flush()
        _copy_rest(reading.fileno(), writing.fileno(), HEADER_SIZE + room)


def _replaced(xml: bytes, words: dict[str, str]) -> bytes:
    text = xml.rstrip(b"\0").decode()
    for old, new in words.items():
        text = text.replace(old, new)
    if len(text.encode()) >= len(xml):
        raise NotASavedState("the new words do not fit")
    return text.encode().ljust(len(xml), b"\0")


def _copy_rest(reading: int, writing: int, offset: int) -> None:
    left = os.fstat(reading).st_size - offset
    while left > 0:
        copied = os.copy_file_range(reading, writing, left, offset, offset)
        if not copied:
            raise NotASavedState("the file ended early")
        left -= copied
        offset += copied
