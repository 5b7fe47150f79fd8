"""What travels between a client and the array: a length of four bytes, then one msgpack frame; one request, one reply, in turn."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from typing import TypeVar

import msgspec

from volgate import errors
from volgate.errors import Holder, VolgateError

__all__ = ["Answer", "Crash", "Failure", "Gone", "Reply", "Request", "decode", "is_open", "receive", "send"]

_reading = threading.Lock()
_LENGTH = struct.Struct(">I")
_LONGEST = 16 << 20
T = TypeVar("T")


class Gone(Exception):
    """The other end closed the connection."""


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Do `verb`; `array` is the id of the array that is meant, "" for any."""

    verb: str
    array: str
    arguments: dict[str, msgspec.Raw]


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The verb was done."""

    value: msgspec.Raw


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The verb was refused; `kind` is a class of volgate.errors."""

    kind: str
    message: str
    reason: str
    field: str
    retry_after: float | None
    holders: tuple[Holder, ...]

    @classmethod
    def of(cls, error: VolgateError) -> Failure:
        """Take an error apart."""
        return cls(type(error).__name__, error.message, error.reason, error.field, error.retry_after, error.holders)

    def error(self) -> VolgateError:
        """Put it together again."""
        kind = getattr(errors, self.kind)
        made: VolgateError = kind.__new__(kind)  # Busy has arguments of its own
        VolgateError.__init__(
            made, self.message, reason=self.reason, field=self.field, retry_after=self.retry_after, holders=tuple(self.holders)
        )
        return made


class Crash(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The caller is to end itself, as if it had crashed."""


Reply = Answer | Failure | Crash


def send(end: socket.socket, frame: Request | Reply) -> None:
    """Send one frame. Raises OSError, ValueError (too long)."""
    data = msgspec.msgpack.encode(frame)
    if len(data) > _LONGEST:
        raise ValueError(f"a frame of {len(data)} bytes is too long")
    end.sendall(_LENGTH.pack(len(data)) + data)


def receive(end: socket.socket, kind: type[T], deadline: float | None = None) -> T:
    """Return the next frame. Raises Gone, TimeoutError at `deadline` (of time.monotonic), OSError."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size, deadline))
    if length > _LONGEST:
        raise ConnectionError(f"a frame of {length} bytes is too long")
    return decode(_exactly(end, length, deadline), kind)


def decode(raw: bytes, kind: type[T]) -> T:
    """Read one value. Threads that bring msgspec a new type at once would crash the process: it reads each in turn."""
    with _reading:
        decoder = msgspec.msgpack.Decoder(kind)
    return decoder.decode(raw)


def is_open(end: socket.socket) -> bool:
    """Whether the other end is still there."""
    if end.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    return not poll.poll(0)


def _exactly(end: socket.socket, count: int, deadline: float | None) -> bytes:
    came = bytearray()
    while len(came) < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            end.settimeout(left)
        data = end.recv(count - len(came))
        if not data:
            raise Gone
        came += data
    return bytes(came)
