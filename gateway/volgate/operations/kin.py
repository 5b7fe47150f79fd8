"""Who this controller is, and whether another one's process on the same machine still lives: by pid and start, by the pools' locks."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from importlib.metadata import version
from pathlib import Path

from volgate.occupancy import is_free
from volgate.store.controllers import Identity

__all__ = ["certainly_gone", "end", "identify", "left_pool"]


def identify(name: str, locks: Path) -> Identity:
    """This process, under a new id. `locks`: the folder of its pools' lock files."""
    pid = os.getpid()
    return Identity(
        id=uuid.uuid4().hex,
        name=name,
        machine=_read("/etc/machine-id"),
        boot=_read("/proc/sys/kernel/random/boot_id"),
        space=_space(),
        pid=pid,
        started=_started(pid),
        version=version("volgate"),
        locks=str(locks),
    )


def certainly_gone(other: Identity, here: Identity) -> bool:
    """Whether the machine itself tells that a process is gone: its pid is, or the machine has booted since."""
    if not other.machine or other.machine != here.machine:
        return False
    if other.boot != here.boot:
        return True
    return other.space == here.space and _started(other.pid) != other.started


def end(other: Identity, here: Identity) -> None:
    """Kill a process that is silent for too long, where it can be seen: it is stopped, or hangs."""
    if _beside(other, here) and _started(other.pid) == other.started:
        with contextlib.suppress(OSError):
            os.kill(other.pid, signal.SIGKILL)


def left_pool(other: Identity, here: Identity, pool: str, *, ours: bool) -> bool:
    """Whether nothing of a buried controller works on a pool any more.

    On this machine its lock tells: nobody has it, or `ours` (this process has the pool's lock) and it is the same one. On another
    machine its lease has ended what it started.
    """
    if not _beside(other, here):
        return True
    if not certainly_gone(other, here):
        return False
    return ours if other.locks == here.locks else is_free(Path(other.locks, f"{pool}.lock"))


def _beside(other: Identity, here: Identity) -> bool:
    return (other.machine, other.boot, other.space) == (here.machine, here.boot, here.space)


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the boot; -1 for one that is gone, or dead and not buried yet."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    return -1


def _space() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="ascii").strip()
    return ""
