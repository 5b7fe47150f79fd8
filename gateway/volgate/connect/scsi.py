"""SCSI devices of this host, as the kernel tells of them: looked for one at a time, proven by what was opened, taken away one at a time.

Nothing here scans a host as a whole: that brings in what nobody asked for, and brings back what is just being taken away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from volgate.errors import Unreachable, VolgateError, translate

__all__ = [
    "SYS",
    "Address",
    "above",
    "below",
    "disk_at",
    "has_map",
    "is_gone",
    "is_map",
    "opened",
    "opened_disk",
    "purpose_of",
    "remove",
    "rescan",
    "scan",
    "size_of",
    "state_of",
    "told_wwid",
    "ways_of",
    "works",
    "wwid_in",
    "wwid_of",
]

SYS = Path("/sys")
_SECTOR = 512
_LOOK_SECONDS = 0.05
_GOING: dict[type[BaseException], type[VolgateError]] = {OSError: Unreachable}
"""The kernel says by many numbers that a device goes, or that its last way does."""
_KINDS = {"naa.": "3", "eui.": "2", "t10.": "1"}
"""How the kernel begins a WWID, and how udev and multipath do (scsi_id)."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a device hangs now. It is no identity: the target may give the same LUN to another volume."""

    host: int
    channel: int
    target: int
    lun: int

    def __str__(self) -> str:
        return f"{self.host}:{self.channel}:{self.target}:{self.lun}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `H:C:T:L`. Raises ValueError."""
        return cls(*(int(part) for part in text.split(":")))

    @property
    def folder(self) -> Path:
        """What the kernel tells of it."""
        return SYS / "bus/scsi/devices" / str(self)


def scan(address: Address) -> None:
    """Look for a device at exactly this address; success if it is known already. Raises Unreachable (no such host any more)."""
    with translate(f"scan for {address}", _GOING):
        (SYS / f"class/scsi_host/host{address.host}/scan").write_text(f"{address.channel} {address.target} {address.lun}", encoding="ascii")


def disk_at(address: Address) -> str:
    """The name of the disk at an address (`sda`), "" if there is none (yet)."""
    with contextlib.suppress(FileNotFoundError):
        return next((entry.name for entry in (address.folder / "block").iterdir()), "")
    return ""


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A device, open for reading: while it is, its number means nothing else. Raises Unreachable: it, or its last way, is gone."""
    with translate(f"open {path}", _GOING):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_disk(name: str, deadline: float) -> Iterator[int]:
    """The disk that the kernel calls so now, open: its node may be that of an earlier disk for a moment. Raises as `opened`."""
    while (descriptor := _open_disk(name, last=time.monotonic() > deadline)) < 0:
        time.sleep(_LOOK_SECONDS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_disk(name: str, *, last: bool) -> int:
    """Open a disk's node; -1 if it is not this disk's (yet)."""
    try:
        with translate(f"open /dev/{name}", _GOING):
            descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            number = os.fstat(descriptor).st_rdev
            if (SYS / "block" / name / "dev").read_text(encoding="ascii").strip() == f"{os.major(number)}:{os.minor(number)}":
                return descriptor
            os.close(descriptor)
            raise Unreachable(f"/dev/{name} is the node of another disk; repeat the call", retry_after=1.0)
    except VolgateError:
        if last or not works(name):  # the kernel gave it up: nobody waits for what will not come
            raise
        return -1


def wwid_of(descriptor: int) -> str:
    """The WWID of an open SCSI disk as multipath writes it (`3` and the NAA in hex), "" if it is no SCSI disk."""
    number = os.fstat(descriptor).st_rdev
    return wwid_in(SYS / f"dev/block/{os.major(number)}:{os.minor(number)}/device")


def told_wwid(address: Address) -> str:
    """The WWID of the device at an address, as the kernel last heard it; "" if there is none."""
    return wwid_in(address.folder)


def wwid_in(folder: Path) -> str:
    """The WWID of the device whose folder of the kernel this is, "" if it has none."""
    try:
        told = (folder / "wwid").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    for begin, kind in _KINDS.items():
        if told.startswith(begin):
            return kind + told.removeprefix(begin)
    return f"8{told}" if told else ""


def size_of(name: str) -> int:
    """How large a block device is, bytes, as the kernel knows it. Raises OSError."""
    return int((SYS / "block" / name / "size").read_text(encoding="ascii")) * _SECTOR


def state_of(address: Address) -> str:
    """What the kernel says of a device: `running`, `blocked`, `offline`, `transport-offline`, ...; "" if it is not there."""
    try:
        return (address.folder / "state").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def works(name: str) -> bool:
    """Whether the kernel has not given a disk up: one whose path broke just now waits for it to come back."""
    try:
        return (SYS / "block" / name / "device/state").read_text(encoding="ascii").strip() not in ("offline", "transport-offline")
    except OSError:
        return False


def above(name: str) -> list[str]:
    """The devices of device mapper that lie upon a disk (`dm-0`)."""
    try:
        return sorted(entry.name for entry in (SYS / "block" / name / "holders").iterdir())
    except FileNotFoundError:
        return []


def purpose_of(name: str) -> str:
    """What device mapper says that one of its devices (`dm-0`) is for, such as `mpath-` and a WWID; "" if it is gone just now."""
    try:
        return (SYS / "class/block" / name / "dm/uuid").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_map(descriptor: int) -> bool:
    """Whether an open device is one of device mapper."""
    number = os.fstat(descriptor).st_rdev
    return (SYS / f"dev/block/{os.major(number)}:{os.minor(number)}/dm").exists()


def below(descriptor: int) -> list[Path]:
    """The folders of the kernel for the disks that an open map of device mapper lies upon now; none for what is no map. Raises OSError."""
    number = os.fstat(descriptor).st_rdev
    try:
        return sorted((SYS / f"dev/block/{os.major(number)}:{os.minor(number)}/slaves").iterdir())
    except FileNotFoundError:
        return []


def has_map(wwid: str) -> bool:
    """Whether device mapper has a map of multipath with that WWID."""
    return _map_of(wwid) is not None


def ways_of(wwid: str) -> set[str]:
    """The disks that the map of a WWID lies upon; none if there is no such map."""
    folder = _map_of(wwid)
    try:
        return {entry.name for entry in (folder / "slaves").iterdir()} if folder else set()
    except OSError:  # it goes just now
        return set()


def _map_of(wwid: str) -> Path | None:
    for file in (SYS / "class/block").glob("dm-*/dm/uuid"):
        with contextlib.suppress(OSError):  # one that goes is told of by errors of several numbers
            if file.read_text(encoding="ascii").strip() == f"mpath-{wwid}":
                return file.parents[1]
    return None


def rescan(address: Address) -> None:
    """Let the kernel read a disk's size anew. Raises Unreachable (it is gone)."""
    with translate(f"look at {address} again", _GOING):
        (address.folder / "rescan").write_text("1", encoding="ascii")


def remove(address: Address) -> None:
    """Take a device away; success if it is gone. What was written to it must be flushed before. Raises Unreachable."""
    with translate(f"take {address} away", _GOING):
        try:
            (address.folder / "delete").write_text("1", encoding="ascii")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def is_gone(address: Address, deadline: float) -> bool:
    """Wait until a device is away, until a monotonic deadline: one whose path failed just now takes half a minute."""
    while address.folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True
