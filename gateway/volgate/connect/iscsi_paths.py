"""Every way to an iSCSI LUN as kernel and multipathd see it now. Nothing is changed, and no command is run."""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from volgate.connect import scsi
from volgate.connect.iscsi_sessions import Session, Sessions
from volgate.connect.multipath import Map, Multipathd, Way
from volgate.connect.scsi import SYS, Address
from volgate.connection import IscsiLun, IscsiPortal
from volgate.errors import VolgateError
from volgate.model import Path as IoPath
from volgate.model import PathState

__all__ = ["Paths"]

_SIOCGIFADDR = 0x8915
_NAME_BYTES = 15
_TRIES, _LOOK_SECONDS = 3, 0.1
_INITIATOR = Path("/etc/iscsi/initiatorname.iscsi")


@dataclass(frozen=True, slots=True)
class _Maps:
    """What multipathd says of a LUN; `problem`: it says nothing."""

    found: Map | None = None
    problem: str = ""


class Paths:
    """Looks, and remembers since when each way is as it is. Any thread."""

    def __init__(self, sessions: Sessions, multipathd: Multipathd) -> None:
        """Nothing is looked at yet."""
        self._sessions, self._multipathd = sessions, multipathd
        self._lock = threading.Lock()
        self._since: dict[tuple[str, str], tuple[tuple[str, ...], float]] = {}

    def of(self, lun: IscsiLun, host: str, *, deadline: float) -> list[IoPath]:
        """One station for each portal, and one for the map. Raises OSError when devices come and go faster than they are looked at."""
        for _ in range(_TRIES):
            try:
                return self._look(lun, host, deadline)
            except OSError:
                time.sleep(_LOOK_SECONDS)
        return self._look(lun, host, deadline)

    def _look(self, lun: IscsiLun, host: str, deadline: float) -> list[IoPath]:
        maps = self._maps(lun, deadline) if lun.multipath else _Maps()
        sessions = {session.portal: session for session in self._sessions.all()}
        portals = lun.portals if lun.multipath else lun.portals[:1]
        found = [_way(lun, portal, sessions.get(portal), maps) for portal in portals]
        if lun.multipath:
            found.append(_station(lun, host, maps))
        return [self._dated(lun.wwid, path) for path in found]

    def _maps(self, lun: IscsiLun, deadline: float) -> _Maps:
        try:
            return _Maps(self._multipathd.find(lun.wwid, deadline))
        except VolgateError as error:
            return _Maps(problem=error.message)

    def _dated(self, wwid: str, path: IoPath) -> IoPath:
        """With the time (UTC seconds) since which it was seen like this, by this process."""
        now = (path.state.value, path.device, path.last_error)
        with self._lock:
            before, since = self._since.get((wwid, path.target), ((), 0.0))
            if before != now:
                since = time.time()
                self._since[wwid, path.target] = (now, since)
        return replace(path, facts={**path.facts, "since": f"{since:.3f}"})

    def forget(self, wwid: str) -> None:
        """The LUN is let go of."""
        with self._lock:
            for key in [key for key in self._since if key[0] == wwid]:
                del self._since[key]


def _way(lun: IscsiLun, portal: IscsiPortal, session: Session | None, maps: _Maps) -> IoPath:
    facts = {"lun": str(lun.lun), "wwid": lun.wwid, "redundant": "yes" if lun.multipath and len(lun.portals) > 1 else "no"}
    if session is None:
        return _failed(portal, _initiator(), "", facts, f"{portal}: this host is not logged in; look at the network and the target")
    address = Address(session.host, 0, 0, lun.lun)
    name = scsi.disk_at(address)
    way = next((way for way in maps.found.ways if way.device == name), None) if maps.found else None
    facts |= {"session": session.state, "address": str(address), **_interface(session), **_scsi_facts(address)}
    if way is not None:
        facts |= {"priority": str(way.priority), "checker": way.checker, "dm": "active" if way.usable else "failed"}
        facts |= {"group_active": "yes" if way.group_active else "no"}
    problem = _problem(lun, portal, session, name, way, maps)
    group = max(0, way.group - 1) if way else 0
    if problem:
        return replace(_failed(portal, session.initiator, name, facts, problem), priority_group=group)
    return IoPath("iscsi", session.initiator, str(portal), f"/dev/{name}", _state(facts, way), group, facts=facts)


def _failed(portal: IscsiPortal, initiator: str, name: str, facts: dict[str, str], problem: str) -> IoPath:
    return IoPath("iscsi", initiator, str(portal), name and f"/dev/{name}", PathState.FAILED, last_error=problem, facts=facts)


def _problem(lun: IscsiLun, portal: IscsiPortal, session: Session, name: str, way: Way | None, maps: _Maps) -> str:
    """Why no I/O travels this way, "" if it does."""
    if session.state != "LOGGED_IN":
        return f"{portal}: the session is {session.state}; look at the network and the target"
    if not name:
        return f"{portal}: no device of LUN {lun.lun}; look at the target's access list"
    state = scsi.state_of(Address(session.host, 0, 0, lun.lun))
    if state != "running":
        return f"{portal}: /dev/{name} is {state or 'gone'}"
    if not lun.multipath or maps.problem:
        return ""
    if way is None:
        return f"{portal}: /dev/{name} is no way of the map {lun.wwid}"
    if not way.usable or way.checker not in ("ready", "ghost"):
        return f"{portal}: /dev/{name} is {'active' if way.usable else 'failed'} in the map, its checker says {way.checker}"
    return ""


def _state(facts: dict[str, str], way: Way | None) -> PathState:
    told = facts.get("alua", "")
    if (way is not None and (way.checker == "ghost" or not way.group_active)) or told in ("standby", "unavailable"):
        return PathState.STANDBY
    return PathState.ACTIVE if told == "active/non-optimized" else PathState.ACTIVE_OPTIMIZED


def _station(lun: IscsiLun, host: str, maps: _Maps) -> IoPath:
    """The map: what all ways come to."""
    if maps.found is None:
        state = PathState.ACTIVE if maps.problem and Path(lun.source).exists() else PathState.FAILED
        return IoPath("multipath", host, lun.wwid, lun.source, state, last_error=maps.problem or f"there is no map of {lun.wwid}")
    one = maps.found
    facts = {"name": one.name, "queueing": "yes" if one.queueing else "no", "ways": str(len(one.ways)), "size": _size(one.device)}
    if any(way.usable for way in one.ways):
        problem = f"{one.name} is read-only" if one.read_only else ""
        return IoPath("multipath", host, lun.wwid, f"/dev/{one.device}", PathState.ACTIVE_OPTIMIZED, last_error=problem, facts=facts)
    told = f"{one.name} has no usable way; {'I/O waits' if one.queueing else 'I/O fails'}"
    return IoPath("multipath", host, lun.wwid, f"/dev/{one.device}", PathState.FAILED, last_error=told, facts=facts)


def _size(device: str) -> str:
    try:
        return str(scsi.size_of(device))
    except OSError:
        return ""


def _initiator() -> str:
    """The name that this host logs in by."""
    try:
        lines = _INITIATOR.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("InitiatorName=")), "")


def _scsi_facts(address: Address) -> dict[str, str]:
    found = {"scsi": scsi.state_of(address)}
    try:
        found["alua"] = (address.folder / "access_state").read_text(encoding="ascii").strip()
    except OSError:  # the target has no ALUA
        found["alua"] = ""
    return found


def _interface(session: Session) -> dict[str, str]:
    """The near end: open-iscsi's interface, this host's address, and the network device that has it."""
    found = {}
    for fact, path in (("iface", f"iscsi_session/session{session.number}/ifacename"), ("from", f"iscsi_host/host{session.host}/ipaddress")):
        try:
            found[fact] = (SYS / "class" / path).read_text(encoding="ascii").strip()
        except OSError:
            found[fact] = ""
    found["interface"] = _device_of(found["from"]) or found["iface"]
    return found


def _device_of(address: str) -> str:
    """The network device that has an IPv4 address, "" if none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()[:_NAME_BYTES]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return ""
