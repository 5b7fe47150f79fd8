"""LUNs of iSCSI targets as devices of this host: logged in to, scanned for, proven, put under one map; and taken apart again."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import structlog

from volgate.connect import scsi
from volgate.connect.held import Held
from volgate.connect.iscsi_paths import Paths
from volgate.connect.iscsi_sessions import Session, Sessions
from volgate.connect.multipath import Map, Multipathd
from volgate.connect.openers import openers
from volgate.connect.scsi import SYS, Address
from volgate.connection import BlockSource, IscsiLun, IscsiPortal
from volgate.errors import InUse, Precondition, Unreachable, VolgateError, translate
from volgate.model import Path as IoPath
from volgate.secret import Secret

__all__ = ["Iscsi"]

_log = structlog.get_logger()
_GROW_LOOK_SECONDS = 0.5
_LOOK_SECONDS = 0.1
_AGAIN_SECONDS = (1.0, 4.0, 9.0, 16.0)  # a target may show a new LUN late
_LATE_SECONDS = 3.0  # for the other ways, once the first one is there
_SHOWN_SECONDS = 10.0  # for the LUN to be shown by the other portals, once the first one has shown it
_GONE_SECONDS = 30.0


class Iscsi:
    """The iSCSI LUNs of one host. Any thread; work on one target is done one after the other. Deadlines are monotonic seconds."""

    def __init__(self, sessions: Sessions | None = None, multipathd: Multipathd | None = None, held: Held | None = None) -> None:
        """Nothing is asked yet."""
        self._held = held or Held()
        self._sessions, self._multipathd = sessions or Sessions(), multipathd or Multipathd()
        self._paths = Paths(self._sessions, self._multipathd)
        self._lock = threading.Lock()
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def connect(self, lun: IscsiLun, secrets: Mapping[str, Secret], *, deadline: float) -> BlockSource:
        """Make the LUN a device of this host and prove that it is the one; success if it is already.

        Raises what the login raises if no portal works, Unreachable (LUN_MISSING), Precondition (IDENTITY_MISMATCH: another volume answers
        there; its device was taken away again).
        """
        with self._alone(lun, deadline):
            if lun.multipath:
                self._multipathd.find(lun.wwid, deadline)  # one that does not run is told of before anything is connected
            self._held.note(lun)
            names = self._reach(lun, secrets, deadline)
            if lun.multipath:
                self._gather(lun, names, deadline)
            if any(scsi.size_of(name) < lun.size for name in names):  # it grew while it was connected
                self._grow(lun, deadline)
            return self._proven(lun, deadline)

    def disconnect(self, lun: IscsiLun, *, deadline: float) -> None:
        """Leave nothing of it on this host; success if nothing is there. Raises InUse (somebody has it open), Unreachable."""
        with self._alone(lun, deadline):
            if lun.multipath and scsi.has_map(lun.wwid):
                self._multipathd.remove(lun.wwid, deadline)
            if not lun.multipath:
                self._require_closed(lun, deadline)
            with ThreadPoolExecutor(len(lun.portals), thread_name_prefix="iscsi-logout") as threads:
                list(threads.map(partial(self._leave, lun, deadline=deadline), lun.portals))  # what one raises keeps no other from its end
            self._held.forget(lun.source)
            self._paths.forget(lun.wwid)

    def release(self, source: str, *, deadline: float) -> None:
        """Leave nothing of what this host connected under that name; success if it is nothing. Raises as `disconnect`."""
        if (lun := self._held.find(source)) is not None:
            self.disconnect(lun, deadline=deadline)

    def incomplete(self) -> list[IscsiLun]:
        """The LUNs under a map that are not there by all their portals: those did not answer, or did not show it, when it was connected.

        A session that broke later is open-iscsi's to bring back. Raises VolgateError.
        """
        with translate("look at what this host has connected"):
            return [lun for lun, _ in self._held.noted() if lun.multipath and scsi.has_map(lun.wwid) and self._missing(lun)]

    def complete(self, lun: IscsiLun, secrets: Mapping[str, Secret], *, deadline: float) -> bool:
        """Connect a LUN by the portals that it is not there by; False if there is none, or it was let go of meanwhile.

        Raises what the login raises if none of them works, as `connect`.
        """
        with self._alone(lun, deadline):
            known = self._held.find(lun.source)
            missing = self._missing(known) if known is not None and scsi.has_map(lun.wwid) else ()
            if known is None or not missing:
                return False
            self._gather(known, self._reach(replace(known, portals=missing), secrets, deadline), deadline)
            return True

    def answers(self, source: str, deadline: float) -> bool:
        """Whether it is connected, by a way that works: a map without one lets whoever asks it for anything wait."""
        if (lun := self._held.find(source)) is None:
            return False
        if not lun.multipath:
            return any(scsi.works(name) for _, name in self._devices(lun))
        found = self._multipathd.find(lun.wwid, deadline) if scsi.has_map(lun.wwid) else None
        return found is not None and found.usable

    def held(self) -> list[str]:
        """What this host has connected, and has not let go of, as libvirt names it."""
        return self._held.sources()

    def grow(self, source: str, size: int, *, deadline: float) -> None:
        """Have every path, then the map, learn the size (bytes) that the LUN has on its target; success if they have it.

        Success too for what is not connected here. Raises Unreachable naming who is short, and why.
        """
        lun = self._held.find(source)
        if lun is not None:
            lun = replace(lun, size=max(size, lun.size))
            with self._alone(lun, deadline):
                self._grow(lun, deadline)
                self._held.note(lun)

    def paths(self, lun: IscsiLun, host: str, *, deadline: float) -> list[IoPath]:
        """Every way to the LUN as it is now; no turn is waited for."""
        with translate(f"{lun.wwid}: devices of this host change just now", {OSError: Unreachable}):
            return self._paths.of(lun, host, deadline=deadline)

    # -- attaching

    def _missing(self, lun: IscsiLun) -> tuple[IscsiPortal, ...]:
        """The portals without a session, or with one that works and has no disk of it."""
        sessions = {session.portal: session for session in self._sessions.all()}

        def is_missing(portal: IscsiPortal) -> bool:
            found = sessions.get(portal)
            return found is None or (found.state == "LOGGED_IN" and not scsi.disk_at(Address(found.host, 0, 0, lun.lun)))

        return tuple(filter(is_missing, lun.portals))

    def _reach(self, lun: IscsiLun, secrets: Mapping[str, Secret], deadline: float) -> list[str]:
        """The disks that the LUN is, by as many portals as work. All are tried at once: a dead one keeps no other waiting."""
        names: list[str] = []
        problems: list[VolgateError] = []
        first = [deadline]

        def reach(portal: IscsiPortal) -> None:
            try:
                names.append(self._disk(lun, portal, secrets, deadline, lambda: first[0]))
                first[0] = min(first[0], time.monotonic() + _SHOWN_SECONDS)
            except VolgateError as error:
                problems.append(error)

        wanted = lun.portals if lun.multipath else lun.portals[:1]
        with ThreadPoolExecutor(len(wanted), thread_name_prefix="iscsi-login") as threads:
            list(threads.map(reach, wanted))
        for problem in problems:
            _log.warning("a portal does not work", wwid=lun.wwid, problem=problem.message)
        if wrong := [error for error in problems if error.reason == "IDENTITY_MISMATCH"]:
            raise wrong[0]
        if not names:
            raise problems[0]
        return names

    def _disk(self, lun: IscsiLun, portal: IscsiPortal, secrets: Mapping[str, Secret], deadline: float, shown: Callable[[], float]) -> str:
        """The disk that one portal shows; `shown` tells until when it is waited for."""
        session = self._sessions.begin(portal, lun.chap, secrets, timeout=_left(deadline))
        address = Address(session.host, 0, 0, lun.lun)
        self._drop_if_changed(address, deadline)
        name = self._scanned(address, session, shown)
        with scsi.opened_disk(name, deadline) as descriptor:
            found = scsi.wwid_of(descriptor)
        if found != lun.wwid:
            self._remove(address, name, deadline)  # multipathd forgets it before its name is given again
            if not found and not self._sessions.stands(portal):  # the path died before the kernel had asked who it is
                told = f"the session with {portal} failed while {name} came; look at the network and the target"
                raise Unreachable(told, reason="ISCSI_UNREACHABLE")
            raise Precondition(
                f"LUN {lun.lun} of {portal} is {found or 'no disk with a name'}, recorded is {lun.wwid}: it is another volume; its device"
                f" {name} was taken away, nothing else was done",
                reason="IDENTITY_MISMATCH",
            )
        return name

    def _drop_if_changed(self, address: Address, deadline: float) -> None:
        """A device that was there before may be another LUN by now: the kernel remembers what it was when it came, until it asks anew.

        Such a device is taken away, and out of the map that it was in: what comes in its place is new to everybody.
        """
        name = scsi.disk_at(address)
        if not name:
            return
        before = scsi.told_wwid(address)
        scsi.rescan(address)
        if (now := scsi.told_wwid(address)) != before:
            _log.warning("a LUN number means another volume now", device=name, address=str(address), before=before, now=now)
            self._remove(address, name, deadline)

    def _scanned(self, address: Address, session: Session, until: Callable[[], float]) -> str:
        began, again = time.monotonic(), iter(_AGAIN_SECONDS)
        scsi.scan(address)
        after = next(again)
        while not (name := scsi.disk_at(address)):
            now = time.monotonic()
            if session.failed:
                told = f"the session with {session.portal} failed; look at the network and the target"
                raise Unreachable(told, reason="ISCSI_UNREACHABLE")
            if now > until():
                raise Unreachable(
                    f"{session.portal} shows this host no LUN {address.lun}; look at its access list for {session.initiator}",
                    reason="LUN_MISSING",
                    retry_after=1.0,
                )
            if now - began > after:
                scsi.scan(address)
                after = next(again, after * 2)
            time.sleep(_LOOK_SECONDS)
        return name

    def _gather(self, lun: IscsiLun, names: list[str], deadline: float) -> Map:
        """Wait until the map is there, and for a while until every disk is a way of it."""
        for name in names:
            self._multipathd.add(name, deadline)
        late = min(deadline, time.monotonic() + _LATE_SECONDS)
        while True:
            whole = scsi.ways_of(lun.wwid) >= set(names)  # the kernel is asked first: multipathd serves one at a time
            found = self._multipathd.find(lun.wwid, deadline) if whole or time.monotonic() > late else None
            ways = {way.device for way in found.ways if way.usable} if found else set()
            if found is not None and ways and (ways >= set(names) or time.monotonic() > late):
                if not found.queueing:  # a release that did not come to its end may have told it to fail
                    self._multipathd.restore_queueing(lun.wwid, deadline)
                return found
            _require_way(lun, names)
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"multipathd makes no map of {lun.wwid} out of {', '.join(names)}; look for it in `multipath -v3` and at its blacklist",
                    reason="MULTIPATH_REFUSED",
                )
            time.sleep(_LOOK_SECONDS)

    def _proven(self, lun: IscsiLun, deadline: float) -> BlockSource:
        """Open what libvirt will, and read through that what it is, how large, and that all below it is the same."""
        while not os.path.exists(lun.source):  # noqa: PTH110  # a link that udev makes
            if lun.multipath:
                _require_way(lun, scsi.ways_of(lun.wwid))
            if time.monotonic() > deadline:
                raise Unreachable(f"udev makes no {lun.source}; look at `udevadm info`", reason="LUN_MISSING")
            time.sleep(_LOOK_SECONDS)
        with scsi.opened(lun.source) as descriptor:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            found = _map_wwid(descriptor) if lun.multipath else scsi.wwid_of(descriptor)
            below = _ways_below(descriptor) if lun.multipath else {}
        other = {name: wwid for name, wwid in below.items() if wwid != lun.wwid}
        if found != lun.wwid or other or size < lun.size:
            told = f"{found or 'no such device'}, {size} bytes" + "".join(f", {name} in it is {wwid}" for name, wwid in other.items())
            raise Precondition(
                f"{lun.source} is {told}; recorded are {lun.wwid} and {lun.size} bytes: nothing was done", reason="IDENTITY_MISMATCH"
            )
        return BlockSource(lun.source, lun.format)

    # -- detaching

    def _require_closed(self, lun: IscsiLun, deadline: float) -> None:
        """Wait until nobody has the disk open: a map that is open stays, but the kernel takes a disk away that is in use. Raises InUse."""
        for _, name in self._devices(lun):
            while held := openers(name):
                if time.monotonic() > deadline:
                    raise InUse(f"{name}, which is {lun.wwid}, is in use by {', '.join(held)}; once they let it go, repeat the call")
                time.sleep(_LOOK_SECONDS)

    def _leave(self, lun: IscsiLun, portal: IscsiPortal, *, deadline: float) -> None:
        """Take away what came of a LUN by one portal, and the session if nothing else came by it."""
        for session in self._sessions.settled(portal, timeout=_left(deadline)):
            for address in session.devices():
                told = scsi.told_wwid(address)  # one whose path is dead cannot be opened, one whose path died too early has no name
                if told == lun.wwid or (not told and address.lun == lun.lun):
                    self._take_away(lun, address, scsi.disk_at(address), deadline)
            self._sessions.end(session, timeout=_left(deadline))

    def _take_away(self, lun: IscsiLun, address: Address, name: str, deadline: float) -> None:
        while held := scsi.above(name):
            others = [one for one in held if (told := scsi.purpose_of(one)) and not told.startswith("mpath-")]
            if others or time.monotonic() > deadline:
                raise InUse(f"{name} is below {', '.join(others or held)}; take that away first (`dmsetup ls --tree`)")
            if self._is_mapped(lun, deadline):  # multipathd makes its map anew of what it hears of, until the disks are gone
                self._multipathd.remove(lun.wwid, deadline)
            else:  # it is at it just now
                time.sleep(_LOOK_SECONDS)
        self._remove(address, name, deadline)

    def _remove(self, address: Address, name: str, deadline: float) -> None:
        scsi.remove(address)
        if not scsi.is_gone(address, max(deadline, time.monotonic() + _GONE_SECONDS)):
            raise Unreachable(f"the kernel does not let {name} ({address}) go; look at its log", retry_after=5.0)
        self._forgotten(name, deadline)

    def _is_mapped(self, lun: IscsiLun, deadline: float) -> bool:
        """Whether multipathd has a map of it: it may take every disk that it sees."""
        try:
            return self._multipathd.find(lun.wwid, deadline) is not None
        except Precondition:  # it does not run
            return False

    def _forgotten(self, name: str, deadline: float) -> None:
        try:
            if not self._multipathd.forgets(name, deadline):
                raise Unreachable(f"multipathd still lists {name}, which is gone; repeat the call", retry_after=1.0)
        except Precondition:  # it does not run, and lists nothing
            return

    # -- inside

    def _devices(self, lun: IscsiLun) -> Iterator[tuple[Address, str]]:
        """The disks of this host that are this very LUN, by its sessions; by their WWID, not by where they hang."""
        for session in self._sessions.all():
            for address in session.devices() if session.portal in lun.portals else ():
                name = scsi.disk_at(address)
                if name and scsi.told_wwid(address) == lun.wwid:
                    yield address, name

    def _grow(self, lun: IscsiLun, deadline: float) -> None:
        """The paths first: a map of paths with different sizes fails reads of some of them."""
        portals = {session.host: session.portal for session in self._sessions.all()}
        devices = {name: address for address, name in self._devices(lun)}
        if lun.multipath and (found := self._multipathd.find(lun.wwid, deadline)) is not None:
            dead = sorted(way.device for way in found.ways if not way.usable or way.device not in devices)
            if dead:
                raise Unreachable(f"path: {', '.join(dead)} of {lun.wwid} cannot be read; bring its portal back, then repeat the call")
        short = devices
        while True:  # a target that has just grown may have ended its sessions for that: they are on their way back
            for address in short.values():
                scsi.rescan(address)
            short = {name: address for name, address in devices.items() if scsi.size_of(name) < lun.size}
            if not short:
                break
            if time.monotonic() > deadline:
                told = ", ".join(f"{name} by {portals.get(address.host)} has {scsi.size_of(name)}" for name, address in short.items())
                raise Unreachable(f"path: of {lun.size} bytes {told}; look whether its portal answers and the LUN has grown there")
            time.sleep(_GROW_LOOK_SECONDS)
        if lun.multipath:
            self._grow_map(lun, deadline)

    def _grow_map(self, lun: IscsiLun, deadline: float) -> None:
        while True:
            found = self._multipathd.find(lun.wwid, deadline)
            size = scsi.size_of(found.device) if found else 0
            if size >= lun.size:
                return
            if time.monotonic() > deadline:
                raise Unreachable(f"map: {lun.wwid} has {size} bytes although its paths have {lun.size}; repeat the call")
            self._multipathd.resize(lun.wwid, deadline)
            time.sleep(_LOOK_SECONDS)

    def _alone(self, lun: IscsiLun, deadline: float) -> AbstractContextManager[None]:
        """Have the targets of a LUN to oneself. Raises as `alone`."""
        return self.alone({portal.target for portal in lun.portals}, deadline)

    @contextmanager
    def alone(self, targets: Collection[str], deadline: float) -> Iterator[None]:
        """Have targets to oneself, taken in order. Raises Unreachable (TARGET_BUSY)."""
        with ExitStack() as stack:
            for target in sorted(targets):
                with self._lock:
                    turn = self._turns[target]
                if not turn.acquire(timeout=max(0.0, _left(deadline))):
                    raise Unreachable(f"other work on {target} does not end in time; nothing was done", reason="TARGET_BUSY")
                stack.callback(turn.release)
            stack.enter_context(translate(f"{', '.join(sorted(targets))}: devices of this host change just now", {OSError: Unreachable}))
            yield


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _require_way(lun: IscsiLun, names: Collection[str]) -> None:
    """Raise Unreachable if the kernel has given every disk up: nobody waits for what will not come."""
    if not any(scsi.works(name) for name in names):
        told = f"every way to {lun.wwid} failed ({', '.join(sorted(names))}); look at the network and the target"
        raise Unreachable(told, reason="ISCSI_UNREACHABLE")


def _map_wwid(descriptor: int) -> str:
    number = os.fstat(descriptor).st_rdev
    try:
        told = (SYS / f"dev/block/{os.major(number)}:{os.minor(number)}/dm/uuid").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    return told.removeprefix("mpath-") if told.startswith("mpath-") else ""


def _ways_below(descriptor: int) -> dict[str, str]:
    """The disks that a map lies on now, and what each is. None is opened: one whose path is dead cannot be."""
    return {entry.name: scsi.wwid_in(entry / "device") for entry in scsi.below(descriptor)}
