"""Who this machine is: read from where its own programs read it, never made up. What is absent stays empty."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

from volgate.hosts.interface import Identity

__all__ = ["boot_id", "identify", "program_version"]

_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_INITIATOR = Path("/etc/iscsi/initiatorname.iscsi")
_NQN, _NVME_HOST_ID = Path("/etc/nvme/hostnqn"), Path("/etc/nvme/hostid")
_LONGEST = 256  # an NQN has at most 223 bytes, an IQN as many


def identify() -> Identity:
    """Read it all now: an administrator may have changed it since the start."""
    return Identity(_first_line(_MACHINE_ID), boot_id(), _initiator(), _first_line(_NQN), _first_line(_NVME_HOST_ID))


def boot_id() -> str:
    """The kernel's id of this boot."""
    return _first_line(_BOOT_ID)


@cache
def program_version() -> str:
    """The version of this program."""
    return version("volgate")


def _initiator() -> str:
    """The value of InitiatorName; open-iscsi takes the last one that is no comment."""
    found = ""
    for line in _text(_INITIATOR).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "InitiatorName":
            found = value.strip()[:_LONGEST]
    return found


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0].strip()[:_LONGEST]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # absent, or not for our user: it is not compared
        return ""
