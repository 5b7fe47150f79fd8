"""A client of the NBD protocol, as far as an image has to be read. The server reads a stranger's image: nothing that it says is believed.

Newstyle with structured replies; the only context asked for is `base:allocation`, which tells what reads as zeroes. One request at a time.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NoReturn

from volgate.errors import Precondition

__all__ = ["LARGEST", "Lost", "NbdClient"]

LARGEST = 32 << 20
"""Bytes that one request may ask for: servers need not take more."""
_GREETING = struct.Struct(">8s8sH")
_OPTION, _OPTION_REPLY = struct.Struct(">8sII"), struct.Struct(">QIII")
_REQUEST, _CHUNK = struct.Struct(">IHHQQI"), struct.Struct(">IHHQI")
_EXPORT, _OFFSET, _COUNT, _STATUS = struct.Struct(">HQH"), struct.Struct(">Q"), struct.Struct(">I"), struct.Struct(">II")
_MAGIC, _HAVE_OPTION, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x668E33EF
_NEWSTYLE_NO_ZEROES = 3
_GO, _STRUCTURED, _META = 7, 8, 10
_ACK, _INFO, _CONTEXT = 1, 3, 4
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_DONE, _NONE, _DATA, _HOLE, _EXTENTS, _ERROR = 1, 0, 1, 2, 5, 1 << 15
_READS_AS_ZEROES = 2
_ALLOCATION = b"base:allocation"
_LONGEST_STATUS = 1 << 30
_MOST_TEXT, _MOST_REPLIES, _MOST_EXTENTS = 4096, 64, 1 << 20
_LEAST_CHUNK = 512


class Lost(Exception):
    """The server has closed the connection."""


class NbdClient:
    """One connection, of one thread at a time. Its methods raise Precondition (BAD_IMAGE), Lost, TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        """Greet the server and take its only export. The connection has a time limit already; `close` closes it."""
        self._connection = connection
        self._cookie = 0
        magic, kind, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, kind) != (_MAGIC, _HAVE_OPTION) or flags & _NEWSTYLE_NO_ZEROES != _NEWSTYLE_NO_ZEROES:
            raise _senseless("it greets in another way")
        self._send(struct.pack(">I", _NEWSTYLE_NO_ZEROES))
        self._ask(_STRUCTURED, b"")
        query = struct.pack(">III", 0, 1, len(_ALLOCATION)) + _ALLOCATION
        if not any(kind == _CONTEXT for kind, _ in self._ask(_META, query)):
            raise _senseless("it does not tell what is allocated")
        told = [data for kind, data in self._ask(_GO, struct.pack(">IH", 0, 0)) if kind == _INFO and data[:2] == b"\0\0"]
        if len(told) != 1 or len(told[0]) != _EXPORT.size:
            raise _senseless("it tells no size")
        self.size = int(_EXPORT.unpack(told[0])[1])

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes, at most LARGEST."""
        found, missing = memoryview(bytearray(length)), length
        for kind, size in self._chunks(_READ, offset, length):
            if kind not in (_DATA, _HOLE) or size <= _OFFSET.size:
                raise _senseless("it answers a read with something else")
            start = self._number(_OFFSET) - offset
            count = size - _OFFSET.size if kind == _DATA else self._number(_COUNT)
            if not 0 <= start < start + count <= length or (kind == _HOLE and size != _OFFSET.size + _COUNT.size):
                raise _senseless("it sends what was not asked for")
            if kind == _DATA:
                self._receive_into(found[start : start + count])
            missing -= count
        if missing:
            raise _senseless("it sends more, or less, than was asked for")
        return bytes(found)

    def data(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what does not read as zeroes between two offsets: its offset and length, in order."""
        while offset < end:
            for length, flags in self._status(offset, min(end - offset, _LONGEST_STATUS)):
                until = min(end, offset + length)
                if not flags & _READS_AS_ZEROES and until > offset:
                    yield offset, until - offset
                offset = until

    def close(self) -> None:
        """Say farewell, if it is heard, and close."""
        try:
            self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        except (Lost, TimeoutError):
            pass
        finally:
            self._connection.close()

    # -- the protocol

    def _ask(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        """Settle an option; return what is replied before the acknowledgement."""
        self._send(_OPTION.pack(_HAVE_OPTION, option, len(data)) + data)
        found: list[tuple[int, bytes]] = []
        while len(found) < _MOST_REPLIES:
            magic, which, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if (magic, which) != (_REPLY_MAGIC, option) or length > _MOST_TEXT:
                raise _senseless("it answers an option with something else")
            said = self._receive(length)
            if kind == _ACK:
                return found
            if kind not in (_INFO, _CONTEXT):
                raise _senseless(f"it refuses option {option}")
            found.append((kind, said))
        raise _senseless("its answer has no end")

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for kind, size in self._chunks(_BLOCK_STATUS, offset, length):
            count, rest = divmod(size - _COUNT.size, _STATUS.size)
            if kind != _EXTENTS or rest or not 0 < count <= _MOST_EXTENTS:
                raise _senseless("it answers a question for extents with something else")
            found += _STATUS.iter_unpack(self._receive(size)[_COUNT.size :])
        if not found or not all(one for one, _ in found):
            raise _senseless("it tells no extents")
        return found

    def _chunks(self, command: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Send a request; yield the kind and size of each chunk of the reply, whose body the caller takes."""
        self._cookie += 1
        self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._cookie, offset, length))
        for _ in range(2 + length // _LEAST_CHUNK):
            magic, flags, kind, cookie, size = _CHUNK.unpack(self._receive(_CHUNK.size))
            if (magic, cookie) != (_CHUNK_MAGIC, self._cookie):
                raise _senseless("it answers something else")
            if kind & _ERROR:
                self._failed(size, offset)
            if kind != _NONE:
                yield kind, size
            elif size or not flags & _DONE:
                raise _senseless("it sends nothing, and goes on")
            if flags & _DONE:
                return
        raise _senseless("its answer has no end")

    def _failed(self, size: int, offset: int) -> NoReturn:
        said = self._receive(min(size, _MOST_TEXT))
        code = _COUNT.unpack_from(said.ljust(_COUNT.size, b"\0"))[0]
        text = said[6:].decode(errors="replace").strip()[:200]
        raise _senseless(f"it cannot be read at {offset}: {text or f'error {code}'}")

    def _number(self, form: struct.Struct) -> int:
        return int(form.unpack(self._receive(form.size))[0])

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except ConnectionError as error:
            raise Lost from error

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, into: memoryview) -> None:
        while into:
            try:
                count = self._connection.recv_into(into)
            except ConnectionError as error:
                raise Lost from error
            if not count:
                raise Lost
            into = into[count:]


def _senseless(problem: str) -> Precondition:
    return Precondition(f"the tool that reads the image makes no sense: {problem}", reason="BAD_IMAGE")
