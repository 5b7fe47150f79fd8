"""Who may reach which volume: a file for each volume that is published, durable before anything of it is seen, and gone last.

A target lives in the kernel and is lost with the boot; it is made anew of these. No secret is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from volgate.backend import PoolContext
from volgate.backend.files import opened, sync_directory, write_durably
from volgate.errors import DataLoss, DeadlineExceeded, Precondition
from volgate_plugins.iscsi.settings import IscsiSettings

__all__ = ["Barred", "Record", "Records"]

_PAUSE = 0.02
_LOCK = struct.Struct("hhqqi4x")
_TURNS, _MARKER, _BARRED = ".turns", ".owner", ".fenced-"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`hosts`: the initiator name of each host that the volume is published to."""

    name: str
    uid: str
    hosts: dict[str, str] = {}


class Barred(msgspec.Struct, frozen=True, kw_only=True):
    """A host that is kept out, by its name and by the one that it logs in by; of an inventory, of LUNs (their WWIDs)."""

    host: str
    iqn: str
    luns: tuple[str, ...] = ()

    def has(self, host: str, iqn: str) -> bool:
        """Whether that is this host, under either name."""
        return host == self.host or iqn == self.iqn


_records, _fences = msgspec.json.Decoder(Record), msgspec.json.Decoder(Barred)


class Records:
    """The records of one pool. Any thread, and any process that has the pool open. Methods raise OSError besides what they name."""

    def __init__(self, settings: IscsiSettings, context: PoolContext) -> None:
        """Claim an empty directory, which is made if it is missing, or prove that it is ours.

        Raises Precondition (POOL_FOREIGN, POOL_MARKER_MISSING).
        """
        self.folder, self._seconds, self._instance = Path(settings.records), settings.seconds, context.instance
        if not settings.expect_marker:
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(str(self.folder.parent))
            if not any(self.folder.iterdir()):
                write_durably(str(self.folder / _MARKER), self._instance.encode())
        self.prove()

    def prove(self) -> None:
        """See that the records are ours, and there: an empty mount point must not look like a pool of which nothing is known yet."""
        try:
            owner = (self.folder / _MARKER).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            told = f"{self.folder} does not say whose it is ({_MARKER} is missing); is it mounted? A new pool begins in an empty directory"
            raise Precondition(told, reason="POOL_MARKER_MISSING") from None
        if owner != self._instance:
            told = f"{self.folder} belongs to gateway {owner[:80]!r}, this one is {self._instance!r}; give the pool records of its own"
            raise Precondition(told, reason="POOL_FOREIGN")

    def uids(self) -> list[str]:
        """The volumes that are published. Raises as `prove`."""
        self.prove()
        return sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith("."))

    def find(self, uid: str) -> Record | None:
        """The record of a volume. Raises DataLoss (TAG_DAMAGED), and as `prove`."""
        self.prove()
        path = self.folder / uid
        try:
            return _records.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            told = f"{path}, which says what is published to whom, is unreadable: {error}; remove it, and attach the volume again"
            raise DataLoss(told, reason="TAG_DAMAGED") from error

    def save(self, record: Record) -> None:
        """Write one, durably."""
        write_durably(str(self.folder / record.uid), msgspec.json.encode(record))

    def drop(self, uid: str) -> None:
        """Remove one, durably; success if there is none."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / uid).unlink()
            sync_directory(str(self.folder))

    def bar(self, found: Barred) -> None:
        """Note, durably, that a host is kept out."""
        write_durably(str(self._barred(found.host)), msgspec.json.encode(found))

    def admit(self, host: str) -> None:
        """Forget it, durably; success if it is not noted."""
        with contextlib.suppress(FileNotFoundError):
            self._barred(host).unlink()
            sync_directory(str(self.folder))

    def barred(self) -> list[Barred]:
        """Those that are kept out. Raises DataLoss (TAG_DAMAGED), and as `prove`."""
        self.prove()
        found = []
        for path in sorted(self.folder.glob(f"{_BARRED}*")):
            try:
                found.append(_fences.decode(path.read_bytes()))
            except FileNotFoundError:
                continue
            except msgspec.MsgspecError as error:
                told = f"{path}, which says that a host is fenced, is unreadable: {error}; remove it, and fence the host again"
                raise DataLoss(told, reason="TAG_DAMAGED") from error
        return found

    def _barred(self, host: str) -> Path:
        return self.folder / f"{_BARRED}{hashlib.sha256(host.encode()).hexdigest()[:32]}"

    @contextmanager
    def turn(self, uid: str, doing: str) -> Iterator[None]:
        """Have a volume to oneself, among all processes; whoever dies lets it go. Raises DeadlineExceeded."""
        at = int(hashlib.sha256(uid.encode()).hexdigest()[:8], 16)
        deadline = time.monotonic() + self._seconds
        with opened(str(self.folder / _TURNS), os.O_RDWR | os.O_CREAT) as descriptor:
            while not _taken(descriptor, at):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(f"{doing}: other work on the volume's target does not end; repeat the call")
                time.sleep(_PAUSE)
            yield


def _taken(descriptor: int, at: int) -> bool:
    """Lock one byte of the file: each volume has its own."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
    except BlockingIOError:
        return False
    return True
