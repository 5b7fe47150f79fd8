"""A TCP wire that a test cuts, holds up, or lets lose the answer to a COMMIT."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

__all__ = ["Wire"]

COMMIT = b"Q\0\0\0\x0bCOMMIT\0"


class Wire:
    """Carries bytes between a port of its own and another one."""

    def __init__(self, to: int) -> None:
        """Listen; `to` is a port of the loopback."""
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = threading.Event()
        self._open.set()
        self._lose = 0
        self._deliver = True
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answers(self, commits: int, *, delivered: bool) -> None:
        """Cut the link at each of the next COMMITs: after it was `delivered`, or before; nobody gets in until `mend`."""
        self._lose, self._deliver = commits, delivered

    def cut(self) -> None:
        """Cut every link and refuse new ones until `mend`."""
        self._open.clear()
        for pair in self._pairs:
            _end(*pair)
        self._pairs.clear()

    def mend(self) -> None:
        """Carry again."""
        self._open.set()

    def close(self) -> None:
        """End."""
        self._listener.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._open.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._pairs.append((near, far))
            threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if asks and self._lose and COMMIT in data:
                    self._lose -= 1
                    self.lost += 1
                    self._open.clear()
                    with contextlib.suppress(OSError):
                        source.shutdown(socket.SHUT_RDWR)  # first: the answer must not come through
                    if self._deliver:
                        target.sendall(data)
                    break
                target.sendall(data)
        _end(source, target)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
