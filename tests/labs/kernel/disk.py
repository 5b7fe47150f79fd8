"""A disk with a cache that a power cut empties: what the guest did not flush may be lost.

QEMU reaches it as a network block device over a unix socket. Writes wait in memory for the guest's flush, or its FUA; then they are in
the file. `lose()` is the power cut: of what still waits, each block is lost or kept as the generator says.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from pathlib import Path

__all__ = ["VolatileDisk"]

BLOCK = 512
GREETING, OPTIONS, REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST, SIMPLE_REPLY = 0x25609513, 0x67446698
EXPORT_NAME, ABORT, UNSUPPORTED = 1, 2, 0x80000001
READ, WRITE, CLOSE, FLUSH, TRIM = 0, 1, 2, 3, 4
FUA = 1
FLAGS = 1 | 4 | 8 | 32  # it has flags, flushes, knows FUA and trims


class VolatileDisk:
    """One disk, for one guest at a time."""

    def __init__(self, path: Path, size: int) -> None:
        """`path` is the file of what is durable; the socket lies beside it. `size` in bytes, a multiple of 512."""
        self.path, self.size = path, size
        self.socket = path.with_suffix(".nbd")
        self._waiting: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, size)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Bytes that a power cut may lose."""
        return len(self._waiting) * BLOCK

    def lose(self, chance: random.Random) -> int:
        """Cut the power; return how many bytes are lost. The guest must be gone."""
        with self._lock:
            kept = {number: data for number, data in self._waiting.items() if chance.random() < 0.5}
            lost = len(self._waiting) - len(kept)
            self._waiting = kept
            self._sync()
        return lost * BLOCK

    def close(self) -> None:
        """End."""
        self._listener.close()
        with self._lock:
            os.close(self._file)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link, contextlib.suppress(OSError, EOFError):
                self._greet(link)
                while self._serve(link):
                    pass

    def _greet(self, link: socket.socket) -> None:
        link.sendall(struct.pack(">QQH", GREETING, OPTIONS, 3))
        _take(link, 4)
        while True:
            _, option, length = struct.unpack(">QII", _take(link, 16))
            _take(link, length)
            if option == EXPORT_NAME:
                link.sendall(struct.pack(">QH", self.size, FLAGS))
                return
            link.sendall(struct.pack(">QIII", REPLY, option, UNSUPPORTED, 0))  # who gets this asks in the plain way
            if option == ABORT:
                raise EOFError

    def _serve(self, link: socket.socket) -> bool:
        _, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", _take(link, 28))
        data = _take(link, length) if kind == WRITE else bytes(length) if kind == TRIM else b""
        if kind == CLOSE:
            return False
        answer = b""
        with self._lock:
            if kind == READ:
                answer = self._read(offset, length)
            if kind in (WRITE, TRIM):
                self._waiting.update({offset + at: data[at : at + BLOCK] for at in range(0, length, BLOCK)})
            if kind == FLUSH or flags & FUA:
                self._sync()
        link.sendall(struct.pack(">IIQ", SIMPLE_REPLY, 0, cookie) + answer)
        return True

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(os.pread(self._file, length, offset))
        for at in range(0, length, BLOCK):
            if (newer := self._waiting.get(offset + at)) is not None:
                data[at : at + BLOCK] = newer
        return bytes(data)

    def _sync(self) -> None:
        for offset, data in self._waiting.items():
            os.pwrite(self._file, data, offset)
        self._waiting.clear()


def _take(link: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = link.recv(min(1 << 20, length - len(data)))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
