"""The hosts that a gateway knows: those of its own process from the settings, and those that register, which come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from volgate.errors import Precondition, Unreachable
from volgate.hosts.interface import Host, HostEvent, HostInfo, Identity
from volgate.hosts.standing import Standing
from volgate.model import Feature
from volgate.store import fences, hosts
from volgate.store.database import Commit
from volgate.store.records import HostRecord

__all__ = ["Connect", "Fleet", "Station", "refuse_fenced", "refuse_released"]

Connect = Callable[[str, Callable[[], Standing]], Host]
"""Makes the host of a name, given what tells how it stands."""


@dataclass(frozen=True, slots=True)
class Station:
    """A host with its name."""

    name: str
    host: Host


class Fleet(Mapping[str, Host]):
    """A live mapping from names to hosts. Any thread may look; changes are seen at once."""

    def __init__(
        self, local: Mapping[str, Host], connect: Connect | None = None, dead_seconds: float = 30.0, *, fresh: bool = False
    ) -> None:
        """`connect` None: no host may register. A host is dead when it was not heard for `dead_seconds`.

        `fresh`: the gateway is new, so that no host can know it yet.
        """
        self._local = dict(local)
        self._connect = connect
        self._dead_seconds = dead_seconds
        self._lock = threading.Lock()
        self._hosts: dict[str, Host] = dict(local)
        self._records: dict[str, HostRecord] = {}
        self._heard: dict[str, float] = {}  # monotonic; wall clocks jump
        self._told: dict[str, float] = {}  # UTC seconds, as the table has them: another process may have heard of a host since
        self._fresh = fresh
        self._began = time.monotonic()
        self._unsettled: set[str] = set()
        self._listener: Callable[[HostEvent], None] | None = None

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._hosts))

    def __len__(self) -> int:
        return len(self._hosts)

    def stations(self) -> list[Station]:
        """The hosts that may have disks: all but those that were released."""
        return [Station(name, host) for name, host in tuple(self._hosts.items()) if not self.record(name).released]

    @property
    def takes_hosts(self) -> bool:
        """Whether hosts may register."""
        return self._connect is not None

    @property
    def local(self) -> Mapping[str, Host]:
        """The hosts of this process."""
        return self._local

    @property
    def known_long(self) -> bool:
        """Whether every host that lives has had the time to register since the start."""
        return self._connect is None or self._fresh or time.monotonic() - self._began > self._dead_seconds

    def subscribe(self, listener: Callable[[HostEvent], None]) -> None:
        """Call `listener` for the events of every host that there is, and that comes."""
        self._listener = listener
        for host in tuple(self._hosts.values()):
            host.subscribe(listener)

    def record(self, name: str) -> HostRecord:
        """What is on record of a host; an empty record for one of this process that nobody cordoned."""
        return self._records.get(name) or HostRecord(name)

    def records(self) -> list[HostRecord]:
        """Every record, by name."""
        return [self._records[name] for name in sorted(self._records)]

    def put(self, record: HostRecord, *, heard: bool = False, unsettled: bool = False) -> None:
        """Know a host as its record says. `heard`: it said so itself just now. `unsettled`: its disks are to be looked at first."""
        name = record.name
        with self._lock:
            self._records[name] = record
            if heard:
                self._heard[name] = time.monotonic()
            if unsettled or record.returning or record.new:
                self._unsettled.add(name)
            if name in self._hosts or self._connect is None or not record.address:
                return
            host = self._hosts[name] = self._connect(name, lambda: self.standing(name))
        if self._listener:
            host.subscribe(self._listener)

    def remove(self, name: str) -> None:
        """Know a host no more; one of this process stays, uncordoned."""
        with self._lock:
            self._records.pop(name, None)
            self._heard.pop(name, None)
            self._unsettled.discard(name)
            host = None if name in self._local else self._hosts.pop(name, None)
        if host is not None:
            host.close()

    def hear(self, name: str, session: str, **status: Any) -> bool:
        """A heartbeat came with this status; False if the host has another session."""
        with self._lock:
            record = self._records.get(name)
            if record is None or not session or record.session != session:
                return False
            self._records[name] = replace(record, last_heartbeat=time.time(), **status)
            self._heard[name] = time.monotonic()
            return True

    def live(self, name: str) -> bool:
        """Whether a host may be asked: it is of this process, or was heard lately."""
        return name in self._local or self.silent(name) < self._dead_seconds

    def told(self, heard: Mapping[str, float]) -> None:
        """The table says when hosts were heard, UTC seconds."""
        self._told = dict(heard)

    def recent(self, at: float) -> bool:
        """Whether a heartbeat at that time, UTC seconds, is one of a host that lives."""
        return 0.0 <= time.time() - at < self._dead_seconds

    def silent(self, name: str) -> float:
        """Seconds since a host was heard, here or by another process of this gateway.

        Of one that this process has not heard, since the start or since its recorded heartbeat, whichever is later: it may live.
        """
        ago = time.time() - max(self.record(name).last_heartbeat, self._told.get(name, 0.0))
        if (heard := self._heard.get(name)) is not None:
            here = time.monotonic() - heard
            return min(here, ago) if ago >= 0.0 else here  # a clock that went back tells nothing
        return min(max(0.0, ago), time.monotonic() - self._began)

    def standing(self, name: str) -> Standing:
        """How a host that registers stands."""
        record, silent = self.record(name), self.silent(name)
        heartbeat = record.last_heartbeat
        if name in self._heard:
            heartbeat = max(heartbeat, time.time() - silent)
        known = tuple(Feature(word) for word in record.features if word in list(Feature))
        live = silent < self._dead_seconds and not record.released
        info = HostInfo(
            name=name,
            identity=Identity(record.machine_id, record.boot_id, record.iqn, record.nqn, record.nvme_host_id),
            uri=record.uri,
            connected=record.connected and live,
            libvirt_version=record.libvirt_version,
            qemu_version=record.qemu_version,
            features=known,
            problem=self._problem(record, silent, live=live),
            version=record.version,
            address=record.address,
            live=live,
            last_heartbeat=heartbeat,
            cordoned=record.cordoned,
            released=record.released,
        )
        return Standing(info, record.session, silent)

    def _problem(self, record: HostRecord, silent: float, *, live: bool) -> str:
        if record.released:
            return "it was released: its attachments were let go; it is taken in again when its volgate registers"
        if not live:
            return f"no heartbeat for {silent:.0f} s; start its volgate, or release it if the machine is off or fenced for sure"
        found = [record.problem, record.note]
        if record.name in self._unsettled:
            found.append("it came back, and its domains' disks are compared with the record; nothing is attached there meanwhile")
        return "; ".join(text for text in found if text)

    def unsettled(self) -> set[str]:
        """The hosts whose disks are to be looked at before anything is attached there."""
        return set(self._unsettled)

    def dead(self) -> int:
        """How many hosts send no heartbeats, without those that were released."""
        return sum(not self.live(name) and not self.record(name).released for name in self)

    def one(self) -> str:
        """A host that can be asked what any host sees, "" if there is none."""
        return next((name for name in self if self.live(name)), "")

    def settle(self, name: str) -> None:
        """The disks of a host are as the record says."""
        self._unsettled.discard(name)

    def require_usable(self, name: str) -> None:
        """Raise Precondition (HOST_CORDONED, HOST_RELEASED), Unreachable (HOST_DOWN, HOST_UNSETTLED) if nothing may be attached there."""
        if self.record(name).cordoned:
            told = f"hosts/{name} is cordoned for maintenance; attach on another, or open it (volgate host uncordon {name})"
            raise Precondition(told, reason="HOST_CORDONED")
        if name in self._local:
            return
        standing = self.standing(name)
        standing.require_held()
        standing.require_live()
        if name in self._unsettled:
            told = f"hosts/{name} came back a moment ago, and what its domains have is still compared with the record; repeat the call"
            raise Unreachable(told, reason="HOST_UNSETTLED", retry_after=2.0)

    def described(self, name: str) -> HostInfo:
        """A host as it is shown."""
        info = self._hosts[name].info()
        return replace(info, cordoned=self.record(name).cordoned) if name in self._local else info


def refuse_released(commit: Commit, name: str) -> None:
    """Raise Precondition (HOST_RELEASED) in a commit that would give a host an attachment after it was released."""
    record = hosts.find(commit, name)
    if record is not None and record.released:
        raise Precondition(f"hosts/{name} was released while this ran; what was done there is given up", reason="HOST_RELEASED")
    refuse_fenced(commit, name)


def refuse_fenced(connection: Commit, name: str) -> None:
    """Raise Precondition (HOST_FENCED) while a host is kept out of a pool, is about to be, or is not let in everywhere yet."""
    if found := fences.of_host(connection, name):
        out = ", ".join(one.pool for one in found)
        told = f"hosts/{name} is fenced in {out}: nothing is attached there; stop what ran on it, then volgate host unfence {name}"
        raise Precondition(told, reason="HOST_FENCED")
