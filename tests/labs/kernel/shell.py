"""A person's way into a guest: `python -m tests.labs.kernel.shell SOCKET` is a terminal of it, Ctrl-] leaves it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator

LEAVE = b"\x1d"


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Hand every key on, if this is a terminal."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def relay(link: socket.socket) -> None:
    """Carry both ways until either end is gone, or Ctrl-] is pressed."""
    link.sendall(b"\n")  # a prompt
    while True:
        for ready in select.select([0, link], [], [])[0]:
            data = os.read(0, 4096) if ready == 0 else link.recv(4096)
            if not data or (ready == 0 and LEAVE in data):
                return
            if ready == 0:
                link.sendall(data)
            else:
                os.write(1, data)


def main() -> None:
    """Connect."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(sys.argv[1])
        with raw(0):
            relay(link)


if __name__ == "__main__":
    main()
