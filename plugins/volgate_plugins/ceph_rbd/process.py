"""A process of a machine, told apart from every other for as long as the machine runs."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Self

import msgspec

from volgate.errors import translate

__all__ = ["Process"]


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """`space` is the machine's boot and the process namespace in it; `started` is in the kernel's ticks."""

    space: str
    pid: int
    started: int

    @classmethod
    def mine(cls) -> Self:
        """This one."""
        return cls(space=_space(), pid=os.getpid(), started=_started(os.getpid()))

    def has_ended(self) -> bool:
        """Whether it has surely ended: False for one that cannot be seen from here."""
        try:
            return self.space == _space() and _started(self.pid) != self.started
        except OSError:
            return False  # the kernel does not say


@functools.cache
def _space() -> str:
    with translate("tell processes of this machine apart"):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> int:
    """When a process was started; 0 for none, and for one that is dead and not yet collected. Raises OSError."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
