"""The plugin's end: connections to the array, kept for the next call, made anew when they broke. Every wait has an end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from volgate.errors import InDoubt, Unreachable
from volgate_plugins.memory.frames import Answer, Crash, Failure, Gone, Reply, Request, decode, is_open, receive, send

__all__ = ["Client", "Conversation"]

T = TypeVar("T")
_PAUSE = 0.02
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
_READING = frozenset(
    (
        "hello",
        "get_volume",
        "list_volumes",
        "connection",
        "check",
        "list_snapshots",
        "bytes_to_copy",
        "children",
        "capacity",
        "image",
        "list_foreign",
        "paths",
        "holders",
        "changed_blocks",
        "fenced",
    )
)


class Conversation:
    """One connection, for calls in turn."""

    def __init__(self, client: Client, end: socket.socket) -> None:
        """Talk through a connected socket."""
        self._client = client
        self._end = end

    def call(self, verb: str, answer: type[T] | Any, /, *, timeout: float, **arguments: Any) -> T:
        """Make a call and return its answer, of type `answer`. `timeout` in seconds.

        Raises what the array raises. Without an answer: InDoubt, for the call may have had its effect; Unreachable if it only reads.
        """
        packed = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in arguments.items()}
        try:
            self._end.settimeout(timeout)
            send(self._end, Request(verb, self._client.array, packed))
            reply: Reply = receive(self._end, Reply, time.monotonic() + timeout)  # type: ignore[arg-type]  # a union is a type for msgspec
        except BaseException as error:  # an interrupt too leaves an answer on its way
            self._end.close()  # an answer that comes later must not be taken for another's
            if not isinstance(error, Gone | OSError):
                raise
            why = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else "the connection was cut before the answer"
            told = f"{verb}: {why}; the array listens at {self._client.path}"
            raise (Unreachable(told) if verb in _READING else InDoubt(f"{told}; repeat the call, it goes on from there")) from error
        match reply:
            case Failure():
                raise reply.error()
            case Crash():
                os.kill(os.getpid(), signal.SIGKILL)
        assert isinstance(reply, Answer)
        found: T = decode(reply.value, answer)
        return found


class Client:
    """Connections to one array; every method is thread-safe. `array` is the id that calls are meant for."""

    def __init__(self, path: str, *, connect_seconds: float, call_seconds: float) -> None:
        """Nothing is connected yet."""
        self.path = path
        self.array = ""
        self._connect_seconds = connect_seconds
        self._call_seconds = call_seconds
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._closed = False

    def call(self, verb: str, answer: type[T] | Any, /, *, timeout: float = 0.0, **arguments: Any) -> T:
        """Make one call; see Conversation. Raises Unreachable if no array listens."""
        with self.conversation() as talk:
            found: T = talk.call(verb, answer, timeout=timeout or self._call_seconds, **arguments)
            return found

    @contextlib.contextmanager
    def conversation(self) -> Iterator[Conversation]:
        """Have one connection for several calls. Raises Unreachable."""
        end = self._take()
        try:
            yield Conversation(self, end)
        finally:
            self._give_back(end)

    def close(self) -> None:
        """Close what is not in use; what is, when it is given back."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for end in idle:
            end.close()

    def _take(self) -> socket.socket:
        with self._lock:
            while self._idle:
                end = self._idle.pop()
                if is_open(end):
                    return end
                end.close()
        return self._connect()

    def _give_back(self, end: socket.socket) -> None:
        with self._lock:
            if end.fileno() >= 0 and not self._closed:
                self._idle.append(end)
                return
        end.close()

    def _connect(self) -> socket.socket:
        """Connect, waiting a while for an array that is just being started."""
        deadline = time.monotonic() + self._connect_seconds
        while True:
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            end.settimeout(max(_PAUSE, deadline - time.monotonic()))
            try:
                end.connect(self.path)
                return end
            except OSError as error:
                end.close()
                if (error.errno not in _ABSENT and not isinstance(error, TimeoutError)) or time.monotonic() + _PAUSE > deadline:
                    told = f"no array answers at {self.path}: {error.strerror or error}; it ended, or was not started"
                    raise Unreachable(told, retry_after=1.0) from error
                time.sleep(_PAUSE)
