"""Who has a block device of this host open, or lies upon it. The kernel lets go of a SCSI disk that is in use; it is asked before.

Whoever may not look at every process is refused: nobody seen is not nobody there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from volgate.connect import scsi
from volgate.connect.scsi import SYS
from volgate.errors import Denied

__all__ = ["openers"]

_FIRST = Path("/proc/1")
_WATCHERS = ("multipathd", "systemd-udevd", "(udev-worker)", "udevd")
"""multipathd has every way that it checks open, and lets go of one that goes; udev, and what it starts, look at what is new."""


def openers(name: str) -> list[str]:
    """Processes, mount points and devices that have a block device (`sda`, `dm-0`), in words; nothing of one that is not there.

    A map of multipath upon it is no user: who has the map open is. Raises Denied.
    """
    try:
        number = (SYS / "class/block" / name / "dev").read_text(encoding="ascii").strip()
    except OSError:
        return []
    found, maps = _mounted(number) + _processes(number), False
    for above in scsi.above(name):
        if scsi.purpose_of(above).startswith("mpath-"):
            maps, found = True, found + openers(above)
        else:
            found.append(f"device {above}")
    return found or ([] if maps else _kernel(name))


def _mounted(number: str) -> list[str]:
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    return [f"mount {fields[4]}" for fields in lines if fields[2] == number]


def _processes(number: str) -> list[str]:
    major, _, minor = number.partition(":")
    device, found = os.makedev(int(major), int(minor)), []
    if not _FIRST.exists():
        raise _blind("/proc hides the processes of others")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            try:
                has = any(_is(entry, device) for entry in (process / "fd").iterdir())
            except PermissionError:
                raise _blind(f"process {process.name} may not be looked at") from None
            if has:
                program = _program(process)
                found += [] if {program, _program(_parent(process))} & {*_WATCHERS} else [f"process {process.name} ({program})"]
    return found


def _blind(why: str) -> Denied:
    return Denied(f"who has a disk open cannot be told: {why}; run volgate here as root, with CAP_SYS_PTRACE and ProtectProc=default")


def _program(process: Path) -> str:
    return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()


def _parent(process: Path) -> Path:
    told = (process / "stat").read_text(encoding="utf-8", errors="replace")
    return process.with_name(told.rpartition(")")[2].split()[1])


def _is(descriptor: Path, device: int) -> bool:
    """Raises PermissionError if the process is not ours to look at."""
    try:
        seen = descriptor.stat()
    except PermissionError:
        descriptor.readlink()  # that may be done: a file system keeps its files to itself, as FUSE does, and has no device
    except OSError:
        pass
    else:
        return stat.S_ISBLK(seen.st_mode) and seen.st_rdev == device
    return False


def _kernel(name: str) -> list[str]:
    """A target or a loop device has it without a process: nobody else may open it alone."""
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return ["the kernel"] if error.errno == errno.EBUSY else []
    return []
