"""One promise of a thin pool's space at a time, in all processes that have the pool open: a limit is looked at and taken in one turn."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from volgate.errors import DeadlineExceeded, translate
from volgate_plugins.lvm.settings import LvmSettings

__all__ = ["turn"]

_FOLDER = "/run/lock"
_PAUSE = 0.01


@contextmanager
def turn(settings: LvmSettings, doing: str) -> Iterator[None]:
    """Hold the turn; whoever dies lets it go. Raises DeadlineExceeded."""
    path = f"{_FOLDER}/volgate-lvm.{settings.vg}.{settings.thin_pool}"
    deadline = time.monotonic() + settings.command_seconds
    with translate(doing):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while not _taken(descriptor):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"{doing}: another call promises space of {settings.vg}/{settings.thin_pool} for too long; repeat it"
                    )
                time.sleep(_PAUSE)
            yield
        finally:
            os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
