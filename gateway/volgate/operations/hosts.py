"""Hosts come, live, are closed, released and removed: what HostService does. Everything here blocks and is thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from volgate.backend import FinishedRecord
from volgate.errors import AlreadyExists, Denied, Holder, InUse, InvalidRequest, NotFound, Precondition, VolgateError
from volgate.hosts.identity import identify
from volgate.hosts.interface import Domain, HostInfo
from volgate.hosts.wire import PROTOCOL
from volgate.operations import codec, publishing, requests
from volgate.operations.audit import tell_ended
from volgate.operations.requests import Caller
from volgate.operations.runner import Runner
from volgate.operations.scope import EVERYTHING, Scope
from volgate.operations.world import World
from volgate.store import attachments, fences, hosts, journal, turns
from volgate.store.database import Commit
from volgate.store.records import AttachmentRecord, HostRecord

__all__ = ["Hosts", "Registration"]

_MOST = 100_000
_SHOWN = 20
_WORDS = {"machine_id": "machine id", "iqn": "iSCSI initiator name", "nqn": "NVMe host NQN", "nvme_host_id": "NVMe host id"}
_STATUS = ("uri", "connected", "problem", "libvirt_version", "qemu_version", "features")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Registration:
    """What a host says of itself; `instance` is the gateway that it belongs to, "" for none yet."""

    said: HostRecord
    instance: str
    protocol: int


class Hosts:
    """The hosts of one gateway."""

    def __init__(self, world: World, runner: Runner, instance: str, arrived: Callable[[str], None]) -> None:
        """`arrived` is told the name of each host that registers by a new session."""
        self._world = world
        self._runner = runner
        self._instance = instance
        self._arrived = arrived
        self._lock = threading.Lock()  # one change of the table at a time in this process; the commit decides
        self._written: dict[str, dict[str, Any]] = {}  # what the table has of each host's status

    def load(self) -> None:
        """Know what is on record: also what another process wrote there."""
        fleet = self._world.hosts
        with self._lock:
            with self._world.database.read() as connection:
                found = {record.name: record for record in hosts.everything(connection)}
            fleet.told({name: record.last_heartbeat for name, record in found.items()})
            for gone in [record.name for record in fleet.records() if record.name not in found]:
                fleet.remove(gone)
            for name, record in found.items():
                known = fleet.record(name)
                if known.session != record.session or known.released != record.released or known.cordoned != record.cordoned:
                    fleet.put(record)

    def keep(self) -> None:
        """Write down when hosts were heard, and what changed with them, all in one commit; learn what others wrote."""
        fleet = self._world.hosts
        if not fleet.takes_hosts:
            return
        heard = [record for record in fleet.records() if record.last_heartbeat > 0.0]
        told = [record for record in heard if _status(record) != self._written.get(record.name)]
        if heard:
            self._world.database.write(lambda commit: _heard(commit, heard, told))
            self._written = {record.name: _status(record) for record in heard}
        self.load()

    def settled(self, name: str, note: str) -> None:
        """The disks of a host that came back are as the record says; `note` tells what was taken from it."""

        def change(commit: Commit) -> HostRecord | None:
            found = hosts.find(commit, name)
            if found is None:
                return None
            hosts.put(commit, record := replace(found, returning=False, new=False, note=note or found.note))
            return record

        with self._lock:
            record = self._world.database.write(change)
            self._world.hosts.settle(name)
            if record is not None:
                self._world.hosts.put(replace(self._world.hosts.record(name), returning=False, new=False, note=record.note))
        _log.info("host is settled", host=name, note=note)

    # -- looks

    def list_hosts(self, scope: Scope = EVERYTHING) -> list[HostInfo]:
        """Every host."""
        with self._world.database.read() as connection:
            fenced = fences.everything(connection)
        found = [self._world.hosts.described(name) for name in sorted(self._world.hosts) if scope.has_host(name)]
        return [replace(info, fenced=fenced[info.name]) if info.name in fenced else info for info in found]

    def described(self, name: str) -> HostInfo:
        """A host as it is shown."""
        with self._world.database.read() as connection:
            fenced = tuple(found.pool for found in fences.of_host(connection, name))
        return replace(self._world.hosts.described(name), fenced=fenced)

    def get_host(self, name: str) -> tuple[HostInfo, list[Domain]]:
        """One host with its domains; no domains while libvirt is down."""
        _, host = self._world.host(name)
        info = self.described(name)
        return info, list(host.list_domains(timeout=self._world.settings.limits.libvirt_timeout)) if info.connected else []

    # -- a host's own calls

    def register(self, asked: Registration) -> str:
        """Take a host in; return this gateway's id. Raises AlreadyExists (HOST_CLONED, HOST_NAME_TAKEN), Denied, Precondition."""
        said = asked.said
        if not self._world.hosts.takes_hosts:
            raise Precondition("no host may register here: the gateway has no [tls]", reason="PRECONDITION")
        if asked.instance not in ("", self._instance):
            told = (
                f"hosts/{said.name} belongs to gateway {asked.instance}, this is {self._instance}; remove it there and its state directory"
            )
            raise Denied(told, reason="HOST_OF_ANOTHER")
        if asked.protocol != PROTOCOL:
            told = f"hosts/{said.name} speaks version {asked.protocol} of the protocol, this gateway {PROTOCOL}; run the same volgate"
            raise Precondition(told, reason="HOST_PROTOCOL")
        self._refuse_local(said)
        with self._lock:
            known, record = self._world.database.write(lambda commit: self._enter(commit, said))
            fresh = known is None or known.session != record.session
            self._world.hosts.put(record, heard=True, unsettled=fresh and (record.new or record.returning))
        if fresh:
            rebooted = known is not None and known.boot_id not in ("", record.boot_id)
            _log.info("host registered", host=said.name, address=said.address, returning=record.returning, rebooted=rebooted)
            self._arrived(said.name)
        return self._instance

    def _refuse_local(self, said: HostRecord) -> None:
        """Raise AlreadyExists for what a host of this process is or has."""
        ours = identify()
        for name in self._world.hosts.local:
            if name == said.name:
                raise AlreadyExists(f"hosts/{name} is one of this gateway's configuration", reason="HOST_NAME_TAKEN")
            _refuse_same(said, HostRecord(name, **{word: getattr(ours, word) for word in hosts.UNIQUE}), "of this gateway's own process")

    def _enter(self, commit: Commit, said: HostRecord) -> tuple[HostRecord | None, HostRecord]:
        """Write the row, unless another host has the name or an identity. Return it as it was and as it is."""
        fleet, known = self._world.hosts, hosts.find(commit, said.name)
        for twin in hosts.twins(commit, said):
            how = "live" if fleet.live(twin.name) else "known; remove it first if it is gone"
            _refuse_same(said, twin, how)
        if known is not None:
            self._refuse_taken(commit, said, known)
        returning = known is not None and (known.returning or known.released)
        kept = HostRecord(said.name) if known is None else known
        record = replace(
            said,
            last_heartbeat=time.time(),
            cordoned=kept.cordoned,
            returning=returning,
            new=known is None or known.new,
            note=kept.note if returning or kept.session == said.session else "",
        )
        hosts.put(commit, record)
        return known, record

    def _refuse_taken(self, commit: Commit, said: HostRecord, known: HostRecord) -> None:
        """Raise AlreadyExists (HOST_NAME_TAKEN): the name is another machine's, or another boot's that still lives."""
        same_machine, same_boot = known.machine_id in ("", said.machine_id), known.boot_id in ("", said.boot_id)
        if same_machine and same_boot:
            return
        live = (self._world.hosts.live(said.name) or self._world.hosts.recent(known.last_heartbeat)) and not known.released
        who = f"machine {known.machine_id}" if not same_machine else f"boot {known.boot_id}"
        if live:
            told = f"hosts/{said.name} is {who} and still sends heartbeats; stop it there, or give this one another name"
            raise AlreadyExists(told, reason="HOST_NAME_TAKEN")
        if not same_machine and not known.released and attachments.page(commit, host=said.name, limit=1):
            told = f"hosts/{said.name} was {who}, which has attachments; release it first if that machine is off, then register this one"
            raise AlreadyExists(told, reason="HOST_NAME_TAKEN")

    def beat(self, said: HostRecord) -> bool:
        """Note a heartbeat of a session that is known here; False for another. Never blocks."""
        return self._world.hosts.hear(said.name, said.session, **_status(said))

    def heartbeat(self, said: HostRecord) -> None:
        """A host is alive. Raises Precondition (HOST_STALE): it has to register."""
        if not self.beat(said):
            self.load()  # it may have registered with another process of this gateway
            if not self.beat(said):
                raise Precondition(f"hosts/{said.name} is not registered by this session; register again", reason="HOST_STALE")

    # -- an operator's calls

    def cordon(self, name: str, caller: Caller, *, uncordon: bool) -> tuple[HostInfo, list[AttachmentRecord]]:
        """Close a host to new attachments, or open it; return it with those that it has. Raises NotFound."""
        name, began = self._world.host(name)[0], time.monotonic()

        def change(commit: Commit) -> HostRecord:
            record = replace(hosts.find(commit, name) or HostRecord(name), cordoned=not uncordon)
            hosts.put(commit, record)
            self._say(commit)
            return record

        with self._lock:
            record = self._world.database.write(change)
            self._world.hosts.put(replace(self._world.hosts.record(name), cordoned=record.cordoned))
        self._tell("CordonHost", name, caller, began)
        return self.described(name), self._attached(name)

    def release(self, name: str, caller: Caller, *, assume_off: bool) -> tuple[HostInfo, list[AttachmentRecord]]:
        """Let go of the attachments of a dead host; return it with them. Raises NotFound, InvalidRequest, Precondition (HOST_LIVE)."""
        name, began, fleet = self._world.host(name)[0], time.monotonic(), self._world.hosts
        kept_out = self._kept_out(name)
        if not (assume_off or kept_out):
            told = f"assume_off: say that hosts/{name} is off or fenced: while it writes, its volumes would have two writers"
            raise InvalidRequest(told, field="assume_off")
        with self._lock:
            if not kept_out:
                self._refuse_live(name)
            record, gone = self._world.database.write(lambda commit: self._let_go(commit, name, kept_out=kept_out))
            fleet.put(record)
        for held in gone:
            _log.warning("attachment let go", host=name, attachment=held.id, volume=held.volume, domain=held.domain_name)
        self._shut_out(gone)
        self._runner.rouse()
        self._tell("ReleaseHost", name, caller, began)
        return self.described(name), gone

    def _shut_out(self, gone: list[AttachmentRecord]) -> None:
        """Take a host that was released its ways to volumes. What cannot be taken now is at the scan that finds the storage there."""
        silent: set[str] = set()
        for held in gone:
            if held.pool in silent:
                continue
            try:
                publishing.close(self._world, held)
            except VolgateError as error:
                silent.add(held.pool)
                _log.warning("a released host is not shut out yet", host=held.host, pool=held.pool, error=error.message)

    def _kept_out(self, name: str) -> bool:
        """Whether a host is fenced in every pool that it has attachments in: it needs nobody's word that it writes no more."""
        with self._world.database.read() as connection:
            proven = {found.pool for found in fences.of_host(connection, name) if found.proven}
            return bool(proven) and {held.pool for held in attachments.page(connection, host=name, limit=_MOST)} <= proven

    def _let_go(self, commit: Commit, name: str, *, kept_out: bool) -> tuple[HostRecord, list[AttachmentRecord]]:
        """Mark a host as released and forget its attachments, unless another process of this gateway hears it, or it is fenced."""
        record = hosts.find(commit, name)
        if record is None:
            raise NotFound(f"hosts/{name} is not known")
        if not kept_out and not record.released and self._world.hosts.recent(record.last_heartbeat):
            raise Precondition(f"hosts/{name} is live: another controller hears it; fence the machine first", reason="HOST_LIVE")
        gone = attachments.page(commit, host=name, limit=_MOST)
        for held in gone:
            attachments.forget(commit, held.id)
        released = replace(record, released=True, session="", note="")
        hosts.put(commit, released)
        self._say(commit)
        return released, gone

    def _say(self, commit: Commit) -> None:
        """Let other controllers look at what an operator said here."""
        if self._world.database.shared:
            turns.tell(commit, "changes")

    def remove(self, name: str, caller: Caller) -> None:
        """Forget a host. Raises Precondition (HOST_LIVE; one of the configuration), InUse."""
        if name not in self._world.hosts:
            return
        began = time.monotonic()
        if name in self._world.hosts.local:
            raise Precondition(f"hosts/{name} is one of the configuration; take it out there")
        with self._lock:
            self._refuse_live(name)
            self._world.database.write(lambda commit: _forgotten(commit, name))
            self._world.hosts.remove(name)
            self._written.pop(name, None)
        self._tell("RemoveHost", name, caller, began)

    def _refuse_live(self, name: str) -> None:
        fleet = self._world.hosts
        if fleet.live(name) and not fleet.record(name).released:
            heard = "it is this gateway's own" if name in fleet.local else f"it was heard {fleet.silent(name):.0f} s ago"
            told = f"hosts/{name} is live ({heard}); stop its volgate or fence the machine, wait until it is dead, and repeat"
            raise Precondition(told, reason="HOST_LIVE")

    def _attached(self, name: str) -> list[AttachmentRecord]:
        with self._world.database.read() as connection:
            return attachments.page(connection, host=name, limit=_MOST)

    def _tell(self, method: str, name: str, caller: Caller, began: float) -> None:
        record = FinishedRecord("", method, f"hosts/{name}", "", caller.principal, "ok", time.monotonic() - began)
        tell_ended(self._world.registry, record)


def _refuse_same(said: HostRecord, other: HostRecord, how: str) -> None:
    """Raise AlreadyExists (HOST_CLONED) naming what two hosts share."""
    same = [word for name, word in _WORDS.items() if getattr(said, name) and getattr(said, name) == getattr(other, name)]
    if same:
        values = ", ".join(f"{word} {getattr(said, name)}" for name, word in _WORDS.items() if word in same)
        told = f"hosts/{said.name} has the {values} of hosts/{other.name}, which is {how}; give a cloned machine its own"
        raise AlreadyExists(told, reason="HOST_CLONED", holders=(Holder("host", f"hosts/{other.name}", ", ".join(same)),))


def _heard(commit: Commit, heard: list[HostRecord], told: list[HostRecord]) -> None:
    """Keep heartbeats and status, unless a row is of another session by now."""
    hosts.heard(commit, heard)
    for record in told:
        found = hosts.find(commit, record.name)
        if found is not None and found.session == record.session:
            hosts.put(commit, replace(found, **_status(record)))


def _status(record: HostRecord) -> dict[str, Any]:
    """What changes from heartbeat to heartbeat."""
    return {name: getattr(record, name) for name in _STATUS}


def _forgotten(commit: Commit, name: str) -> None:
    held = attachments.page(commit, host=name, limit=_SHOWN)
    if held:
        holders = tuple(Holder("attachment", f"attachments/{record.id}", f"domain {record.domain_name}") for record in held)
        raise InUse(f"hosts/{name} has attachments; detach them, or release the host if it is off", holders=holders)
    if fences.of_host(commit, name):
        raise InUse(f"hosts/{name} is fenced: its addresses are kept out; let it in first (volgate host unfence {name})")
    for record in journal.unfinished(commit):
        request = codec.decode_request(record.method, record.request)
        if isinstance(request, requests.AttachVolume) and request.host in ("", name):
            holder = Holder("operation", f"operations/{record.id}", record.method)
            raise InUse(f"hosts/{name}: operations/{record.id} on it has not ended; release the host first", holders=(holder,))
    hosts.forget(commit, name)
