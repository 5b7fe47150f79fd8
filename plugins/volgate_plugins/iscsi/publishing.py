"""Letting hosts in and keeping them out: the record first, then the target; and the target first, then the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from volgate.backend import Initiator, PoolContext, VolumeId
from volgate.errors import Holder, InUse, Precondition, Unreachable, VolgateError, translate
from volgate_plugins.iscsi.identity import Unit, initiator_of
from volgate_plugins.iscsi.lio import Lio
from volgate_plugins.iscsi.records import Barred, Record, Records
from volgate_plugins.iscsi.settings import IscsiSettings
from volgate_plugins.iscsi.tgt import Tgt

__all__ = ["Publishing"]

Source = Callable[[VolumeId], str]
"""Tells the path of the file or device that a volume is."""


class Publishing:
    """What is published of one pool. Any thread, any process that has the pool open."""

    def __init__(self, settings: IscsiSettings, context: PoolContext, source: Source) -> None:
        """Raises Precondition (LIO_MISSING, POOL_FOREIGN, POOL_MARKER_MISSING)."""
        self._settings, self._pool, self._source = settings, context.pool, source
        with translate(f"open pool {context.pool}"):
            self._records = Records(settings, context)
        self.target: Lio | Tgt = Tgt(settings, context.pool, self._records.turn) if settings.target == "tgt" else Lio(settings)

    def unit(self, volume: VolumeId) -> Unit:
        """What a volume is called on the network."""
        return Unit.of(volume.uid, self._settings.iqn, self._pool)

    def publish(self, volume: VolumeId, initiator: Initiator) -> None:
        """Let a host in. Two hosts of one name would be one to the target: Precondition (INITIATOR_MISSING)."""
        name, unit = initiator_of(initiator), self.unit(volume)
        with self._turn(unit, f"publish volume {volume.name}"):
            source = self._source(volume)
            record = self._records.find(unit.uid) or Record(name=volume.name, uid=unit.uid)
            if twins := [host for host, known in record.hosts.items() if known == name and host != initiator.host]:
                told = f"publish volume {volume.name}: hosts/{twins[0]} and hosts/{initiator.host} both call themselves {name}"
                raise Precondition(f"{told}; give one of them an initiator name of its own", reason="INITIATOR_MISSING")
            known, record = record, msgspec.structs.replace(record, hosts={**record.hosts, initiator.host: name})
            self._records.save(record)
            if any(barred.has(initiator.host, name) for barred in self._records.barred()):  # looked at last: a fence reads records after
                self._restore(known)
                told = f"publish volume {volume.name}: hosts/{initiator.host} is fenced; let it in first (UnfenceHost)"
                raise Precondition(told, reason="HOST_FENCED")
            self.target.put(unit, self._admissible(record), lambda: source)

    def unpublish(self, volume: VolumeId, host: str) -> None:
        """Throw a host out, then forget it."""
        unit = self.unit(volume)
        with self._turn(unit, f"unpublish volume {volume.name}"):
            record = self._records.find(unit.uid)
            left = {name: known for name, known in record.hosts.items() if name != host} if record else {}
            if record is None or not left:
                self.target.remove(unit)
                self._records.drop(unit.uid)
            elif left != record.hosts:
                self.target.put(unit, left.values(), lambda: self._source(volume))
                self._records.save(msgspec.structs.replace(record, hosts=left))

    def fence(self, initiator: Initiator) -> None:
        """Keep a host out of every volume: noted first, then at each target, with the sessions that it has; then its records go.

        Raises Unreachable: what is noted stays so, and the call is to be repeated.
        """
        barred = Barred(host=initiator.host, iqn=initiator.iqn.lower())
        with translate(f"fence hosts/{initiator.host}"):
            self._records.bar(barred)
            for uid in self._records.uids():
                unit = self.unit(VolumeId("", uid))
                with self._records.turn(uid, f"fence hosts/{initiator.host} at {unit.target}"):
                    self._shut(unit, barred)

    def unfence(self, host: str) -> None:
        """Let it be published to again."""
        with translate(f"unfence hosts/{host}"):
            self._records.admit(host)

    def fenced(self) -> list[str]:
        """Those that are kept out."""
        with translate("look who is fenced"):
            return sorted(barred.host for barred in self._records.barred())

    def hosts(self, volume: VolumeId) -> list[str]:
        """Those that it is published to."""
        with translate(f"look who reaches volume {volume.name}"):
            record = self._records.find(self.unit(volume).uid)
        return sorted(record.hosts) if record else []

    @contextmanager
    def alone(self, volume: VolumeId, doing: str) -> Iterator[None]:
        """Have a volume that is published to nobody, and to nobody meanwhile. Raises InUse."""
        with self._turn(self.unit(volume), doing):
            if hosts := self.hosts(volume):
                told = f"{doing}: it is published to {', '.join(f'hosts/{host}' for host in hosts)}; detach it there first"
                raise InUse(told, holders=tuple(Holder("host", host) for host in hosts))
            yield

    def grow(self, volume: VolumeId) -> None:
        """Have what is published be as large as what lies below it."""
        with self._turn(unit := self.unit(volume), f"expand volume {volume.name}"):
            self.target.grow(unit)

    def put_back(self) -> list[str]:
        """Have every record be true; return what does not work."""
        problems = self.target.lacks()
        try:
            with translate(f"look what pool {self._pool} has published"):
                uids = self._records.uids()
        except VolgateError as error:
            return [error.message]
        for uid in uids:
            try:
                self._put_back(uid)
            except VolgateError as error:  # the others are put back all the same
                problems.append(error.message)
        return problems

    def _put_back(self, uid: str) -> None:
        unit = self.unit(VolumeId("", uid))
        with self._turn(unit, f"publish volume {uid} again"):
            record = self._records.find(unit.uid)
            if record is not None and not self.target.stands(unit, wanted := self._admissible(record)):
                self.target.put(unit, wanted, lambda: self._source(VolumeId(record.name, record.uid)))

    def _shut(self, unit: Unit, barred: Barred) -> None:
        record = self._records.find(unit.uid)
        names = {name for host, name in record.hosts.items() if barred.has(host, name)} if record else set()
        if record is None or not names:
            return
        left = {host: name for host, name in record.hosts.items() if name not in names}
        if left:
            self.target.put(unit, left.values(), lambda: self._source(VolumeId(record.name, record.uid)), anew=True)
        else:
            self.target.remove(unit)
        if still := sorted({name for name, _ in self.target.sessions(unit)} & names):
            told = f"fence hosts/{barred.host}: {unit.target} still has a session of {', '.join(still)}; repeat the call"
            raise Unreachable(told, reason="FENCE_UNPROVEN", retry_after=1.0)
        self._restore(msgspec.structs.replace(record, hosts=left))

    def _restore(self, record: Record) -> None:
        """Have the record say this; one without hosts is none."""
        if record.hosts:
            self._records.save(record)
        else:
            self._records.drop(record.uid)

    def _admissible(self, record: Record) -> list[str]:
        """The names that may come in: a fence that died in its middle has noted whom it is to keep out."""
        barred = self._records.barred()
        return [name for host, name in record.hosts.items() if not any(one.has(host, name) for one in barred)]

    @contextmanager
    def _turn(self, unit: Unit, doing: str) -> Iterator[None]:
        with translate(doing), self._records.turn(unit.uid, doing):
            yield
