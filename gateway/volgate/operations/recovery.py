"""What a start does before it takes up operations: guests are rid of orphans, attachments that only libvirt knows get their record back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from volgate.connection import LocalFile
from volgate.errors import Precondition, VolgateError
from volgate.hosts.interface import DetachOutcome, FoundDisk
from volgate.model import Access, Volume, VolumeState
from volgate.names import VolumeName, attachment_id
from volgate.operations import codec, lookups, publishing, requests, transports
from volgate.operations.disconnect import disconnect_leftovers, is_disconnected
from volgate.operations.fleet import Station
from volgate.operations.leftovers import Leftovers
from volgate.operations.runner import Runner
from volgate.operations.sweep import Sweep
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, fences, journal
from volgate.store.records import AttachmentRecord, AttachmentState, OperationRecord

__all__ = ["Rebuild", "Repairs", "repair_host"]

_log = structlog.get_logger()
_HOSTS_AT_ONCE = 32
_HOST_SECONDS = 10.0  # a start does not wait longer for a libvirt that hangs
_POOL_SECONDS = 5.0  # nor for pools that hang
_DISKS = (requests.AttachVolume, requests.CreateSnapshot, requests.DetachVolume)


def repair_host(world: World, name: str) -> bool:
    """Remove what interrupted attaches left in the guests of a host; False if the host does not answer.

    Nor while another controller changes disks: what QEMU has and libvirt does not list yet may be its attach.
    """
    if _others_attach(world):
        return False
    timeout = min(_HOST_SECONDS, world.settings.limits.libvirt_timeout)
    if (host := world.hosts.get(name)) is None:
        return True  # it was removed
    try:
        disconnect_leftovers(host, name, _sources(world, name), timeout=timeout)
        running = [domain for domain in host.list_domains(timeout=timeout) if domain.active]
        sources = _sources(world, name) if running else []
        for domain in running:
            for finding in host.repair(domain.uuid, sources, apply=True, timeout=timeout):
                _log.warning("orphan", host=name, domain=domain.name, device=finding.alias, repaired=finding.repaired)
    except VolgateError as error:
        _log.warning("orphans cannot be looked for", host=name, error=error.message)
        return False
    return True


def _others_attach(world: World) -> bool:
    if not world.database.shared:
        return False
    with world.database.read() as connection:
        left = {record.id for record in journal.orphans(connection)}
        running = journal.unfinished(connection)
    mine = (world.database.owner, *left)
    return any(isinstance(_request(one), _DISKS) for one in running if one.owner not in mine and one.id not in mine)


def _request(record: OperationRecord) -> requests.Request:
    return codec.decode_request(record.method, record.request)


def _sources(world: World, host: str) -> list[str]:
    """The files that a domain may hold by our doing: those on record, and those of operations that were interrupted."""
    with world.database.read() as connection:
        found = {record.source for record in attachments.page(connection, host=host, limit=100_000)}
        left = journal.unfinished(connection)
    for record in left:
        request = _request(record)
        found.add(str(msgspec.json.decode(record.facts).get("source", "")))  # noted before it was connected: its pool may be down by now
        if isinstance(request, _DISKS) and request.target.startswith("pools/"):
            found |= _files(world, VolumeName.parse(request.target), host)
    return sorted(found - {""})


def _files(world: World, name: VolumeName, host: str) -> set[str]:
    try:
        pool = world.pools.get(name.pool)
        pool.require_served()
        volume = lookups.require_volume(pool, name, "")
        connection = pool.call(pool.backend().connection, lookups.identity(volume), host=host)
    except VolgateError:  # nothing can be attached of a volume that cannot be reached
        return set()
    layers = connection.chain if isinstance(connection, LocalFile) else ()
    return {*transports.sources(connection), *(path for path, _ in layers)}


class Repairs:
    """The hosts whose guests are still to be rid of what interrupted attaches left. Any thread may add one; one thread runs."""

    def __init__(self, world: World) -> None:
        """None yet."""
        self._world = world
        self._left: set[str] = set()
        self._sweep: Sweep[Station, bool] = Sweep("repair", _HOSTS_AT_ONCE)
        self._leftovers = Leftovers(world, partial(_sources, world))

    def add(self, name: str) -> None:
        """Look at a host in the next round."""
        self._left.add(name)

    def run(self) -> None:
        """Make a round of a few seconds; hosts that do not answer in it are looked at again."""
        wanted = [station for station in self._world.hosts.stations() if station.name in self._left]
        ended = self._sweep.run(wanted, lambda station: repair_host(self._world, station.name), _POOL_SECONDS)
        self._left.difference_update(name for name, repaired in ended.items() if repaired)
        self._leftovers.run()

    def close(self) -> None:
        """Begin nothing more."""
        self._sweep.close()
        self._leftovers.close()


class Rebuild:
    """Makes records for disks of ours that have none: the database was lost. Of a host that comes back, it takes what is elsewhere.

    From when every host has answered and a pool was listed (or has no volume that could be attached), the record of that pool is
    trusted. No pool waits for another.
    """

    def __init__(self, world: World, runner: Runner, settled: Callable[[str, str], None]) -> None:
        """Nothing is looked at yet. `settled` is told of each host whose disks were looked at after it came, and what was taken."""
        self._world = world
        self._runner = runner
        self._settled = settled
        self._taken: dict[str, list[str]] = {}
        self._volumes: dict[str, tuple[str, str]] = {}  # of what is on record, by its file
        self._sweep: Sweep[Pool, bool] = Sweep("rebuild")
        self._looks: Sweep[Station, list[FoundDisk] | None] = Sweep("disks", _HOSTS_AT_ONCE)

    @property
    def done(self) -> bool:
        """Whether the record of every pool is trusted, and every host settled."""
        known = self._world.attachments_known
        served = (pool.name for pool in self._world.pools if not pool.left_alone)
        return all(name in known for name in served) and not self._world.hosts.unsettled()

    def run(self, *, again: bool = False) -> None:
        """Make one pass, of at most five seconds for all pools together; pools that are trusted are looked at only with `again`."""
        world = self._world
        with world.database.read() as connection:
            records = attachments.page(connection, limit=100_000)
            world.attachments_known.update(attachments.trusted(connection))
        if self.done and not again:
            return
        known = {record.alias for record in records}
        self._volumes = {record.source: (record.pool, record.volume) for record in records}
        waiting = world.hosts.unsettled()
        stations = world.hosts.stations()
        answers = self._looks.run(stations, partial(_disks, world), _HOST_SECONDS)
        disks = {station.name: answers.get(station.name) for station in stations}
        unknown = {name: [disk for disk in found or () if disk.disk.alias not in known] for name, found in disks.items()}
        served = [pool for pool in world.pools if not pool.left_alone]
        answered = None not in disks.values() and world.hosts.known_long
        wanted = [pool for pool in served if any(unknown.values()) or pool.name not in world.attachments_known]
        ended = self._sweep.run(wanted, partial(self._settle, unknown=unknown, answered=answered), _POOL_SECONDS)
        whole = len(served) == len(list(world.pools)) and all(ended.get(pool.name, False) for pool in wanted)
        for name in waiting:
            if disks.get(name) is not None and (whole or not unknown[name]):
                self._settled(name, "; ".join(self._taken.pop(name, [])))

    def _settle(self, pool: Pool, *, unknown: dict[str, list[FoundDisk]], answered: bool) -> bool:
        """Record the disks of a pool's volumes; trust its record if no host, no storage and no operation was in the way."""
        try:
            volumes = pool.call(lambda: list(pool.backend().list_volumes()))
            settled = True
            for host, found in unknown.items():
                settled &= self._adopt(pool, volumes, host, found)
            if settled and (answered or not volumes) and pool.name not in self._world.attachments_known:
                self._world.database.write(partial(attachments.trust, pool=pool.name))
                self._world.attachments_known.add(pool.name)
        except VolgateError as error:  # a pool that is down is looked at again later
            _log.info("a pool's attachments are not known yet", pool=pool.name, error=error.message)
            return False
        return settled

    def _adopt(self, pool: Pool, volumes: list[Volume], host: str, unknown: list[FoundDisk]) -> bool:
        """Find the volumes of these disks, and settle each; False if something was in the way.

        A disk's alias begins with the attachment's id. The file alone tells of one that an earlier name of the host attached.
        """
        settled = True
        for volume in volumes:
            for found in unknown:
                identifier = attachment_id(volume.uid, host, found.disk.domain)
                ours = volume.state is VolumeState.READY and found.disk.alias.startswith(f"ua-vg-{identifier[:8]}-")
                if ours or self._volumes.get(found.disk.source) == (pool.name, volume.name):
                    settled &= self._settle_disk(pool, host, volume, found, identifier if ours else "")
        return settled

    def _settle_disk(self, pool: Pool, host: str, volume: Volume, found: FoundDisk, identifier: str) -> bool:
        """Record or take away one disk; False if an operation is at the volume: a running attach has its disk before its record."""
        release = self._runner.hold_if_free(str(VolumeName(pool.name, volume.name)))
        if release is None:
            return False
        try:
            if elsewhere := self._elsewhere(pool, host, volume, found):
                return self._take(host, volume, found, elsewhere)
            with self._world.database.read() as connection:
                kept_out = fences.holds(connection, host, pool.name)
            if identifier and not kept_out:  # what a fenced host has holds nothing, until it is let in
                with contextlib.suppress(Precondition):  # a host that cannot be let in has the disk all the same: nobody else may write
                    publishing.open_again(pool, lookups.identity(volume), host, self._world.hosts[host])
                _record(self._world, pool, host, volume, found, identifier)
        finally:
            release()
        return True

    def _elsewhere(self, pool: Pool, host: str, volume: Volume, found: FoundDisk) -> AttachmentRecord | None:
        """The attachment for which a host that came back must let go of a volume.

        Of one that was released: any on another host. Of one that is new, or was removed: one that allows no second, unless the
        database is new too, for then nobody knows which of the two is the right one.
        """
        record = self._world.hosts.record(host)
        if not (record.returning or (record.new and pool.name in self._world.attachments_known)):
            return None
        with self._world.database.read() as connection:
            records = attachments.of_volume(connection, pool.name, volume.name)
        others = [other for other in records if other.volume_uid == volume.uid and other.host != host]
        access = {other.options.access for other in others} | {found.options.access}
        shared = access in ({Access.SHARED}, {Access.READ_ONLY})
        return others[0] if others and (record.returning or not shared) else None

    def _take(self, host: str, volume: Volume, found: FoundDisk, elsewhere: AttachmentRecord) -> bool:
        """Take a disk from a domain whose volume was given to another meanwhile; False while the guest keeps it."""
        disk, there = found.disk, f"domain {elsewhere.domain_name} of hosts/{elsewhere.host}"
        outcome = self._world.hosts[host].detach(disk.domain, disk.alias, disk.source, timeout=_POOL_SECONDS)
        if outcome is DetachOutcome.GONE and not is_disconnected(self._world, host, disk.source, ""):
            outcome = DetachOutcome.PENDING
        text = f"{volume.name} was taken from domain {disk.domain_name}: it is attached to {there} now"
        _log.error("a disk that is attached elsewhere", host=host, domain=disk.domain_name, alias=disk.alias, volume=volume.name,
                   elsewhere=there, outcome=outcome)  # fmt: skip
        if outcome is DetachOutcome.GONE and text not in self._taken.setdefault(host, []):
            self._taken[host].append(text)
        return outcome is DetachOutcome.GONE

    def close(self) -> None:
        """Begin nothing more."""
        self._sweep.close()
        self._looks.close()


def _disks(world: World, station: Station) -> list[FoundDisk] | None:
    """The disks of ours on a host, None if it does not answer."""
    try:
        return list(station.host.our_disks(timeout=min(_HOST_SECONDS, world.settings.limits.libvirt_timeout)))
    except VolgateError as error:
        _log.info("disks cannot be listed", host=station.name, error=error.message)
        return None


def _record(world: World, pool: Pool, host: str, volume: Volume, found: FoundDisk, identifier: str) -> None:
    """Write one record; the volume is locked."""
    name, disk = VolumeName(pool.name, volume.name), found.disk
    if disk.source not in _files(world, name, host):
        _log.error("a disk with our alias is not the volume's", domain=disk.domain_name, alias=disk.alias, source=disk.source)
        return
    record = AttachmentRecord(
        id=identifier,
        pool=pool.name,
        volume=volume.name,
        volume_uid=volume.uid,
        host=host,
        domain=disk.domain,
        domain_name=disk.domain_name,
        state=AttachmentState.ATTACHED,
        options=found.options,
        alias=disk.alias,
        source=disk.source,
        target=disk.target,
        address=disk.address,
        live=disk.live,
        config=disk.config,
        xml=disk.xml,
        boot_id=disk.boot_id,
        created_at=time.time(),
    )
    if world.database.write(partial(attachments.add, record=record)):
        _log.warning("attachment rebuilt from libvirt", attachment=identifier, volume=str(name), domain=disk.domain_name)
