"""Every act of a piece of code that leaves this process, told before it happens: programs, the kernel's files, records, sockets, devices."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from volgate.connect import iscsi_sessions
from volgate.connect.multipath import Multipathd

__all__ = ["Outward", "watching"]

_WRITTEN = ("/sys/", "/etc/iscsi/", "/run/volgate/")
_OPENED = ("/dev/sd", "/dev/dm-", "/dev/disk/", "/dev/mapper/")
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_watching: Outward | None = None


class Outward:
    """Numbers the acts from 1; what is repeated while somebody waits is one. `before` is called in the thread of the act, just before."""

    def __init__(self, before: Callable[[int, str], None]) -> None:
        """Nothing was done yet."""
        self.told: list[str] = []
        self._before = before
        self._lock = threading.Lock()
        self._here = threading.local()

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """What the interpreter tells of itself (PEP 578)."""
        if event == "open" and isinstance(args[0], (str, os.PathLike)):
            path = os.fspath(args[0])
            changed = isinstance(path, str) and path.startswith(_WRITTEN) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if changed or (isinstance(path, str) and path.startswith(_OPENED)):
                self.act(f"open {path}")
        elif event in _CHANGES and str(args[0]).startswith(_WRITTEN):
            self.act(f"{event} {args[0]}")
        elif event == "fcntl.ioctl":
            self.act(f"ioctl {args[1]:#x}")
        elif event == "socket.connect" and isinstance(args[1], tuple):  # a portal; multipathd is told of with its commands
            self.act(f"connect to {args[1][0]}")

    def act(self, what: str) -> None:
        """Number an act, unless the one before it in this thread was the same."""
        if getattr(self._here, "busy", False) or getattr(self._here, "last", "") == what:
            return
        self._here.last = what
        with self._lock:
            self.told.append(what)
            number = len(self.told)
        self._here.busy = True
        try:
            self._before(number, what)
        finally:
            self._here.busy = False


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _watching is not None:
        _watching.hear(event, args)


sys.addaudithook(_hear)  # it cannot be taken back, and does nothing unless something is watched


@contextmanager
def watching(patch: pytest.MonkeyPatch, before: Callable[[int, str], None]) -> Iterator[Outward]:
    """Tell each act of every thread of this process until the block ends."""
    global _watching  # noqa: PLW0603  # the interpreter's hook has no other way to it
    run, ask = iscsi_sessions.run, Multipathd._ask
    outward = Outward(before)

    def told_run(argv: list[str], *, timeout: float) -> Any:
        outward.act(" ".join(argv))
        return run(argv, timeout=timeout)

    def told_ask(self: Multipathd, command: str, deadline: float) -> str:
        outward.act(f"multipathd: {command}")
        return ask(self, command, deadline)

    with patch.context() as patched:
        patched.setattr(iscsi_sessions, "run", told_run)
        patched.setattr(Multipathd, "_ask", told_ask)
        _watching = outward
        try:
            yield outward
        finally:
            _watching = None
