"""Who works on a pool: a lock file that the gateway and every process which it starts for the pool hold open together.

A gateway that was killed may leave a process that the kernel does not let go, with a write under way. The next gateway has the lock
only when the last such process is gone, and does not touch the pool before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path

from volgate.errors import Unreachable, from_os_error

__all__ = ["Occupancy", "is_free"]

_TICK = 0.02


class Occupancy:
    """The lock of one pool."""

    def __init__(self, path: Path) -> None:
        """Nothing is taken yet; the file's folder is made when it is."""
        self._path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int | None:
        """What a process that works on the pool inherits; None until the lock is taken."""
        return self._descriptor

    def take(self, patience: float = 0.0) -> None:
        """Take the lock, or have it already. Raises Unreachable naming the processes that hold it after `patience` seconds."""
        deadline = time.monotonic() + patience
        with self._lock:
            while self._descriptor is None:
                self._descriptor = self._try()
                if self._descriptor is None and time.monotonic() >= deadline:
                    holders = ", ".join(_holders(self._path)) or "a process that ends just now"
                    raise Unreachable(
                        f"an earlier gateway left {holders}, which still works on this pool and may write beside this gateway; if it "
                        "does not end by itself, look at the storage below: one that was killed ends when its system call does",
                        reason="POOL_OCCUPIED",
                        retry_after=5.0,
                    )
                if self._descriptor is None:
                    time.sleep(_TICK)

    def release(self) -> None:
        """Let go; processes that still work on the pool keep it."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _try(self) -> int | None:
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"lock {self._path}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def is_free(path: Path) -> bool:
    """Whether nobody holds a lock file open, of another gateway on this machine; one that is not there was never taken."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # not ours to look at: who cannot tell says no
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _holders(path: Path) -> list[str]:
    """The processes that have the file open, by the kernel's names of their files: no storage is asked, it may hang."""
    pids = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208  # names are all that is wanted
    return [f"process {pid} ({_name(pid)})" for pid in pids if str(path) in _opened(pid)]


def _opened(pid: int) -> set[str]:
    """Of others' processes only root learns this. Every thread is asked: of a killed process, the first goes before one that hangs."""
    found = set()
    for entry in Path(f"/proc/{pid}/task").glob("*/fd/*"):
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone"
