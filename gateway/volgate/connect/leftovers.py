"""What this host has of ours that nobody accounts for: LUNs, maps, disks, sessions and open-iscsi's records.

It is read from files of the kernel, of ours and of open-iscsi; nothing is asked or changed. Ours is what was noted before it was made:
a LUN (:mod:`volgate.connect.held`), a session (the mark of its portal), and what came through such a session; a record says it itself.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from volgate.connect import scsi
from volgate.connect.held import Held
from volgate.connect.iscsi_records import Record, marks, records
from volgate.connect.iscsi_sessions import Session, Sessions
from volgate.connect.scsi import SYS, Address
from volgate.connection import IscsiLun, IscsiPortal

__all__ = ["Disk", "Found", "look"]

_YOUNG_SECONDS = 30.0  # what was noted so lately is of an attach that its controller may not have told of yet


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that came through a session of ours. `wwid` is what the kernel says of it now."""

    name: str
    address: Address
    wwid: str
    session: Session

    def __str__(self) -> str:
        return f"{self.name} ({self.address}, {self.wwid or 'without a WWID'}) of {self.session.portal}"


@dataclass(frozen=True, slots=True)
class Found:
    """All that is unaccounted for. `maps` are WWIDs; `records` are portals whose record, or mark, has no session.

    `risen`: records of ours that would log in by themselves when the host boots.
    """

    luns: tuple[IscsiLun, ...] = ()
    maps: tuple[str, ...] = ()
    disks: tuple[Disk, ...] = ()
    sessions: tuple[Session, ...] = ()
    records: tuple[IscsiPortal, ...] = ()
    risen: tuple[Record, ...] = ()


def look(accounted: Collection[str], held: Held, sessions: Sessions) -> Found:
    """Look at all of it. `accounted`: what libvirt names the LUNs of every attachment of this host by, and of every one that begins."""
    noted, marked, now = held.noted(), marks(), time.time()
    kept = [lun for lun, since in noted if lun.source in accounted or now - since < _YOUNG_SECONDS]
    left = tuple(lun for lun, _ in noted if lun not in kept)
    known = {lun.wwid for lun, _ in noted}
    portals = {portal for lun, _ in noted for portal in lun.portals}
    there = list(sessions.all())
    ours = [session for session in there if _is_old(marked.get(session.portal), now)]
    disks = [disk for session in ours for disk in _disks(session)]
    stray = tuple(disk for disk in disks if (disk.wwid not in known if disk.wwid else disk.session.portal not in portals))
    live = {session.portal for session in there}
    written = [record for record in records() if record.ours or record.portal in marked]
    silent = {record.portal for record in written if _is_old(record.since, now)} | {
        at for at, since in marked.items() if _is_old(since, now)
    }
    return Found(
        luns=left,
        maps=tuple(sorted(_maps(stray))),
        disks=stray,
        sessions=tuple(one for one in ours if one.portal not in portals and not any(d.session == one and d.wwid in known for d in disks)),
        records=tuple(sorted(silent - live - portals)),
        risen=tuple(record for record in written if record.startup != "manual"),
    )


def _is_old(since: float | None, now: float) -> bool:
    return since is not None and now - since >= _YOUNG_SECONDS


def _disks(session: Session) -> Iterator[Disk]:
    for address in session.devices():
        if name := scsi.disk_at(address):
            yield Disk(name, address, scsi.told_wwid(address), session)


def _maps(stray: Collection[Disk]) -> Iterator[str]:
    """The maps of multipath that lie upon these disks alone: one with another way below is not ours."""
    names = {disk.name for disk in stray}
    for file in (SYS / "class/block").glob("dm-*/dm/uuid"):
        wwid, below = _map(file)
        if wwid and below and below <= names:
            yield wwid


def _map(file: Path) -> tuple[str, set[str]]:
    try:
        told = file.read_text(encoding="ascii").strip()
        below = {entry.name for entry in (file.parents[1] / "slaves").iterdir()}
    except OSError:  # it is gone
        return "", set()
    return (told.removeprefix("mpath-"), below) if told.startswith("mpath-") else ("", set())
