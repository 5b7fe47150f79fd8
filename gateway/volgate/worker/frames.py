"""What travels between the gateway and a worker: a length of four bytes, then one frame of msgpack. Never pickle.

The gateway sends Call, Cancel, Ping and Reply; the worker Answer, Part, Failure, Progress, Ask and Pong.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace

import msgspec

from volgate import errors
from volgate.errors import Holder, VolgateError
from volgate.secret import redacted

__all__ = ["Answer", "Ask", "Call", "Cancel", "Channel", "Failure", "Part", "Ping", "Pong", "Progress", "Reply"]

_LENGTH = struct.Struct(">I")
_LONGEST = 64 << 20


class _Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Call(_Frame, frozen=True):
    """Do `method`; each argument is a value of its own in msgpack. `trace` is the W3C traceparent of the caller's span."""

    id: int
    method: str
    arguments: dict[str, msgspec.Raw]
    trace: str = ""


class Cancel(_Frame, frozen=True):
    """The caller of a call with progress wants no more of it."""

    id: int


class Ping(_Frame, frozen=True):
    """Is the process there? Answered by a thread that makes no native call."""


class Reply(_Frame, frozen=True):
    """The answer to an Ask; `failure` instead of a value if it is refused."""

    id: int
    value: str = ""
    failure: str = ""


class Part(_Frame, frozen=True):
    """Some of the values that a call yields; more follow, then its Answer."""

    id: int
    value: msgspec.Raw


class Answer(_Frame, frozen=True):
    """A call ended well; `seconds` is the time that it ran in the worker."""

    id: int
    value: msgspec.Raw
    seconds: float


class Failure(_Frame, frozen=True):
    """A call raised. `kind` names a class of :mod:`volgate.errors`, the one that a plugin's own was made of, or what a bug raised."""

    id: int
    kind: str
    message: str
    reason: str = ""
    field: str = ""
    retry_after: float | None = None
    metadata: dict[str, str] = {}
    holders: tuple[Holder, ...] = ()

    @classmethod
    def of(cls, identifier: int, error: BaseException) -> Failure:
        """Take an exception apart. Only this process knows the secrets that the plugin holds: they are taken out here."""
        if not isinstance(error, VolgateError):
            return cls(identifier, type(error).__name__, redacted(str(error)))
        kind = next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
        return cls(
            identifier,
            kind,
            redacted(error.message),
            error.reason,
            error.field,
            error.retry_after,
            {key: redacted(value) for key, value in error.metadata.items()},
            tuple(replace(holder, detail=redacted(holder.detail)) for holder in error.holders),
        )

    def error(self) -> Exception:
        """Put it together again; what is not one of ours is a bug of the plugin and stays one."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, VolgateError)):
            return RuntimeError(f"the plugin raised {self.kind}: {self.message}")
        made = kind.__new__(kind)
        VolgateError.__init__(
            made,
            self.message,
            reason=self.reason,
            holders=self.holders,
            field=self.field,
            retry_after=self.retry_after,
            metadata=self.metadata,
        )
        return made


class Progress(_Frame, frozen=True):
    """How far a call is, 0 to 1."""

    id: int
    fraction: float


class Ask(_Frame, frozen=True):
    """The worker needs a secret: `reference` names it. It travels on the socket pair only, and is kept in no frame that is logged."""

    id: int
    reference: str


class Pong(_Frame, frozen=True):
    """The process is there."""


_Any = Call | Cancel | Ping | Reply | Part | Answer | Failure | Progress | Ask | Pong


class Channel:
    """One end of the socket pair; any thread may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        """Take a connected stream socket."""
        self._end = end
        self._sending = threading.Lock()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[memoryview], _Any] = msgspec.msgpack.Decoder(_Any).decode
        self._came = bytearray()

    def send(self, frame: _Any) -> None:
        """Send one frame. Raises OSError when the other end is gone, or reads nothing for the socket's time limit."""
        data = self._encode(frame)
        if len(data) > _LONGEST:
            raise ValueError(f"a frame of {len(data)} bytes is too long")
        with self._sending:
            self._end.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> _Any | None:
        """Return the next frame, None at the end. Raises TimeoutError and OSError; after a timeout the next call goes on."""
        while True:
            if len(self._came) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._came)
                if length > _LONGEST:
                    raise ConnectionError(f"a frame of {length} bytes is too long")
                if len(self._came) >= _LENGTH.size + length:
                    frame = self._decode(memoryview(self._came)[_LENGTH.size : _LENGTH.size + length])
                    self._came = self._came[_LENGTH.size + length :]
                    return frame
            data = self._end.recv(1 << 18)
            if not data:
                return None
            self._came += data

    def shut(self) -> None:
        """Wake the receiver with the end of the stream."""
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was quicker

    def close(self) -> None:
        """Close the socket; nobody receives any more."""
        self._end.close()
