"""Takes away what this host has of ours and nobody accounts for, once it was seen so twice, apart. What is in use stays, and is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial

import structlog

from volgate.connect import scsi
from volgate.connect.held import Held
from volgate.connect.iscsi import Iscsi
from volgate.connect.iscsi_records import Record, rewrite
from volgate.connect.iscsi_sessions import Session, Sessions
from volgate.connect.leftovers import Disk, Found, look
from volgate.connect.multipath import Multipathd
from volgate.connect.openers import openers
from volgate.connection import IscsiLun, IscsiPortal
from volgate.errors import InUse, Unreachable, VolgateError, translate
from volgate.model import Leftover

__all__ = ["Reconciler"]

_log = structlog.get_logger()
_APART_SECONDS = 30.0
_ONE_SECONDS = 10.0  # for one of them: a map that is open is not waited for
_Take = Callable[[float], None]


class Reconciler:
    """What it saw, and when. Any thread; one look at a time."""

    def __init__(self, iscsi: Iscsi) -> None:
        """Nothing was seen yet."""
        self._iscsi = iscsi
        self._held, self._sessions, self._multipathd = Held(), Sessions(), Multipathd()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], float] = {}

    def look(self, accounted: Collection[str], *, apply: bool, deadline: float) -> list[Leftover]:
        """Tell what is unaccounted for; with `apply` take away what was so in an earlier look, too. Until a monotonic deadline.

        `accounted`: what libvirt names the LUNs of this host's attachments by. Raises VolgateError (nothing can be read).
        """
        with self._lock:
            found = list(self._each(look(accounted, self._held, self._sessions)))
            now = time.monotonic()
            self._seen = {(one.kind, one.name): self._seen.get((one.kind, one.name), now) for one, _ in found}
            told = []
            for one, take in found:
                due = now - self._seen[one.kind, one.name] >= _APART_SECONDS
                told.append(_taken(one, take, min(deadline, time.monotonic() + _ONE_SECONDS)) if apply and due else one)
            return told

    # -- what there is, and how each is taken away

    def _each(self, found: Found) -> Iterator[tuple[Leftover, _Take]]:
        """In this order: a disk goes after its map, a session after its disks."""
        for lun in found.luns:
            yield Leftover("lun", lun.source, "no attachment of this host uses it"), partial(self._lun, lun)
        for wwid in found.maps:
            yield Leftover("map", wwid, "it lies upon disks that no attachment of this host uses"), partial(self._map, wwid, found.disks)
        for disk in found.disks:
            yield Leftover("disk", str(disk), "no attachment of this host uses it"), partial(self._disk, disk)
        for session in found.sessions:
            yield Leftover("session", str(session.portal), "no attachment of this host uses it"), partial(self._session, session)
        for portal in found.records:
            yield Leftover("record", str(portal), "its session is gone"), partial(self._record, portal)
        for record in found.risen:
            problem = f"node.startup is {record.startup}: it logs in by itself when the host boots"
            yield Leftover("startup", str(record.portal), problem), partial(self._startup, record)

    def _lun(self, lun: IscsiLun, deadline: float) -> None:
        self._iscsi.release(lun.source, deadline=deadline)

    def _map(self, wwid: str, disks: Collection[Disk], deadline: float) -> None:
        with self._iscsi.alone({disk.session.portal.target for disk in disks}, deadline):
            self._multipathd.remove(wwid, deadline)

    def _disk(self, disk: Disk, deadline: float) -> None:
        with self._iscsi.alone({disk.session.portal.target}, deadline):
            if scsi.disk_at(disk.address) != disk.name or scsi.told_wwid(disk.address) != disk.wwid:
                return  # it is gone, and another one is there
            if disk.wwid in {lun.wwid for lun, _ in self._held.noted()}:
                return  # it is being attached by now
            _require_unused(disk.name)
            while scsi.above(disk.name) and time.monotonic() < deadline:  # multipathd may make a map of it again until it is gone
                self._multipathd.remove(disk.wwid, deadline)
            scsi.remove(disk.address)
            if not scsi.is_gone(disk.address, deadline):
                raise Unreachable(f"the kernel does not let {disk} go; look at its log", retry_after=5.0)

    def _session(self, session: Session, deadline: float) -> None:
        with self._iscsi.alone({session.portal.target}, deadline):
            if not self._sessions.end(session, timeout=deadline - time.monotonic()):
                raise InUse(f"the session with {session.portal} still has devices, or is not ours any more")

    def _record(self, portal: IscsiPortal, deadline: float) -> None:
        with self._iscsi.alone({portal.target}, deadline):
            if self._sessions.find(portal) is None:
                self._sessions.forget(portal)

    def _startup(self, record: Record, deadline: float) -> None:
        with self._iscsi.alone({record.portal.target}, deadline), translate(f"change the record of {record.portal}"):
            rewrite(record.path, {"node.startup": "manual"})


def _taken(one: Leftover, take: _Take, deadline: float) -> Leftover:
    try:
        take(deadline)
    except VolgateError as error:  # told, and tried again at the next look
        return replace(one, problem=error.message)
    _log.warning("what nobody accounted for is gone", kind=one.kind, name=one.name)
    return replace(one, removed=True)


def _require_unused(name: str) -> None:
    """Raise InUse naming who has a device."""
    if name and (held := openers(name)):
        raise InUse(f"{name} is in use by {', '.join(held)}; it stays until they let it go")
