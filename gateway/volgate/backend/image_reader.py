"""A stranger's image, read piece by piece: the sandboxed child serves it over a socket, and no copy of what it holds is made.

The child is `qemu-nbd`, told the format, with the bounds of every tool that reads such an image. It serves a socket that it inherits,
whose name is gone once we are connected.
"""

# descriptors are the subject here; paths stay plain strings
# ruff: noqa: PTH106, PTH108

from __future__ import annotations

import contextlib
import os
import queue
import socket
import tempfile
from collections.abc import Iterator

from volgate.backend.image import MAXIMUM, TOOL_MEMORY, Sandbox, described
from volgate.backend.nbd import LARGEST, Lost, NbdClient
from volgate.backend.run import Completed, Limits, refuse_killed, start
from volgate.errors import DeadlineExceeded, Precondition, VolgateError, translate
from volgate.model import Format
from volgate.spawner import Child

__all__ = ["ImageReader", "reading"]

_SILENT_SECONDS = 300.0
_END_SECONDS = 10.0
_MOST_SAID = 1 << 16


class ImageReader:
    """What an image holds. Thread-safe: as many reads go on at once as there are connections."""

    def __init__(self, size: int, clients: list[NbdClient]) -> None:
        """`size` is what a guest would see, bytes."""
        self.size = size
        self._clients: queue.SimpleQueue[NbdClient] = queue.SimpleQueue()
        for client in clients[1:]:
            self._clients.put(client)
        self._teller = clients[0]

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield where the image has data: offset and length, in order; everything between reads as zeroes. One call at a time."""
        yield from self._teller.data(0, self.size)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes. Raises Precondition (BAD_IMAGE); what else it raises is for `reading` to explain."""
        client = self._clients.get()
        try:
            steps = [(at, min(LARGEST, offset + length - at)) for at in range(offset, offset + length, LARGEST)]
            return b"".join(client.read(*step) for step in steps)
        finally:
            self._clients.put(client)


@contextlib.contextmanager
def reading(source: str, source_format: Format, *, staging: str, maximum: int = MAXIMUM, readers: int = 4) -> Iterator[ImageReader]:
    """Read an image that is inspected first, in `readers` requests at once.

    `staging`: a folder for a copy of the file if the sandbox cannot read it. Raises Precondition (HOSTILE_IMAGE naming what, BAD_IMAGE),
    OutOfRange (larger than `maximum`), NotFound, DeadlineExceeded (no answer for five minutes), Unreachable (COMMAND_KILLED).
    """
    with translate(f"read image {source}"), contextlib.ExitStack() as stack:
        box = stack.enter_context(Sandbox(staging))
        name, found = box.look(source, source_format, maximum)
        said = stack.enter_context(os.fdopen(os.memfd_create("said", os.MFD_CLOEXEC), "r+b"))
        child, sockets = _serve(box, described(name, source_format, ()), said.fileno(), readers + 1, stack)
        try:
            clients = [_client(one, stack) for one in sockets]
            if {client.size for client in clients} != {found.virtual_size}:
                raise Precondition(f"{source} changes its size while it is read", reason="BAD_IMAGE")
            yield ImageReader(found.virtual_size, clients)
        except Lost as error:
            for one in sockets:  # without them it ends by itself
                one.shutdown(socket.SHUT_RDWR)
            raise _why(child, os.pread(said.fileno(), _MOST_SAID, 0), source) from error
        except TimeoutError as error:
            text = f"read image {source}: qemu-nbd did not answer for {_SILENT_SECONDS:.0f} s and was killed"
            raise DeadlineExceeded(text, reason="COMMAND_TIMEOUT") from error


def _client(connection: socket.socket, stack: contextlib.ExitStack) -> NbdClient:
    client = NbdClient(connection)
    stack.callback(client.close)
    return client


def _serve(box: Sandbox, image: str, said: int, count: int, stack: contextlib.ExitStack) -> tuple[Child, list[socket.socket]]:
    """Start the child on a socket that nobody else can find, and connect to it; it ends with the last connection, or is killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        sockets = _connected(listener, count, stack)
        command = ["qemu-nbd", "--read-only", f"--shared={count}", image]
        socket_at_3 = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"', *command]  # the process id is part of the convention
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a descriptor is what is wanted
            child = start(
                socket_at_3,
                descriptors=(nothing.fileno(), said, said, listener.fileno()),
                cwd=box.folder,
                env={"LISTEN_FDS": "1"},
                user=box.user,
                limits=Limits(memory=TOOL_MEMORY, file_size=_MOST_SAID),
            )
    stack.callback(child.close)
    return child, sockets


def _connected(listener: socket.socket, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    folder = tempfile.mkdtemp(prefix="volgate-nbd-")
    try:
        inside = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{inside}/nbd"  # however long the folder's own path is
            listener.bind(path)
            listener.listen(count)
            sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
            for one in sockets:
                one.settimeout(_SILENT_SECONDS)
                one.connect(path)
            os.unlink(path)
        finally:
            os.close(inside)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(f"{folder}/nbd")
        os.rmdir(folder)
    return sockets


def _why(child: Child, said: bytes, source: str) -> VolgateError:
    """What it means that the child has hung up."""
    try:
        code = child.wait(_END_SECONDS)
        refuse_killed(Completed(code, b"", said), f"read image {source}: qemu-nbd")
    except TimeoutError:
        return Precondition("the image is refused: the tool that reads it does not end", reason="HOSTILE_IMAGE")
    except VolgateError as error:
        return error
    if code < 0:
        return Precondition("the image is refused: the tool that reads it was stopped at its limits", reason="HOSTILE_IMAGE")
    text = said.decode(errors="replace").strip()[-300:] or "it is damaged in the middle"  # of which qemu-nbd says nothing
    return Precondition(f"{source} cannot be read: {text}", reason="BAD_IMAGE")
