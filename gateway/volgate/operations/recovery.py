"""What a start does before it takes up operations: guests are rid of orphans, attachments that only libvirt knows get their record back."""

from __future__ import annotations

import time
from functools import partial

import structlog

from volgate.errors import VolgateError
from volgate.hosts.interface import FoundDisk, Host
from volgate.model import Volume, VolumeState
from volgate.names import VolumeName, attachment_id
from volgate.operations import codec, lookups, requests
from volgate.operations.runner import Runner
from volgate.operations.sweep import Sweep
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, journal
from volgate.store.records import AttachmentRecord, AttachmentState, OperationRecord

__all__ = ["Rebuild", "repair_host"]

_log = structlog.get_logger()
_HOST_SECONDS = 10.0  # a start does not wait longer for a libvirt that hangs
_POOL_SECONDS = 5.0  # nor for pools that hang
_DISKS = (requests.AttachVolume, requests.CreateSnapshot, requests.DetachVolume)


def repair_host(world: World, name: str) -> bool:
    """Remove what interrupted attaches left in the guests of a host; False if the host does not answer.

    Nor while another controller changes disks: what QEMU has and libvirt does not list yet may be its attach.
    """
    if _others_attach(world):
        return False
    host, timeout = world.hosts[name], min(_HOST_SECONDS, world.settings.limits.libvirt_timeout)
    try:
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
    return {connection.path, *(path for path, _ in connection.chain)}


class Rebuild:
    """Makes records for disks of ours that have none: the database was lost.

    From when every host has answered and a pool was listed (or has no volume that could be attached), the record of that pool is
    trusted. No pool waits for another.
    """

    def __init__(self, world: World, runner: Runner) -> None:
        """Nothing is looked at yet."""
        self._world = world
        self._runner = runner
        self._sweep: Sweep[None] = Sweep("rebuild")

    @property
    def done(self) -> bool:
        """Whether the record of every pool is trusted."""
        return all(pool.name in self._world.attachments_known for pool in self._world.pools if not pool.quarantine)

    def run(self, *, again: bool = False) -> None:
        """Make one pass, of at most five seconds for all pools together; pools that are trusted are looked at only with `again`."""
        world = self._world
        with world.database.read() as connection:
            known = {record.alias for record in attachments.page(connection, limit=100_000)}
            world.attachments_known.update(attachments.trusted(connection))
        if self.done and not again:
            return
        disks = {name: _disks(world, name, host) for name, host in world.hosts.items()}
        unknown = {name: [disk for disk in found or () if disk.disk.alias not in known] for name, found in disks.items()}
        served = [pool for pool in world.pools if not pool.quarantine]
        wanted = [pool for pool in served if any(unknown.values()) or pool.name not in world.attachments_known]
        self._sweep.run(wanted, partial(self._settle, unknown=unknown, answered=None not in disks.values()), _POOL_SECONDS)

    def _settle(self, pool: Pool, *, unknown: dict[str, list[FoundDisk]], answered: bool) -> None:
        """Record the disks of a pool's volumes; trust its record if no host, no storage and no operation was in the way."""
        try:
            volumes = pool.call(lambda: list(pool.backend().list_volumes()))
            settled = True
            for host, found in unknown.items():
                settled &= _adopt(self._world, self._runner, pool, volumes, host, found)
            if settled and (answered or not volumes) and pool.name not in self._world.attachments_known:
                self._world.database.write(partial(attachments.trust, pool=pool.name))
                self._world.attachments_known.add(pool.name)
        except VolgateError as error:  # a pool that is down is looked at again later
            _log.info("a pool's attachments are not known yet", pool=pool.name, error=error.message)

    def close(self) -> None:
        """Begin nothing more."""
        self._sweep.close()


def _disks(world: World, name: str, host: Host) -> list[FoundDisk] | None:
    """The disks of ours on a host, None if it does not answer."""
    try:
        return list(host.our_disks(timeout=min(_HOST_SECONDS, world.settings.limits.libvirt_timeout)))
    except VolgateError as error:
        _log.info("disks cannot be listed", host=name, error=error.message)
        return None


def _adopt(world: World, runner: Runner, pool: Pool, volumes: list[Volume], host: str, unknown: list[FoundDisk]) -> bool:
    """Find the volumes of these disks by the ids that their aliases begin with; False if an operation was in the way."""
    settled = True
    for volume in volumes:
        for found in unknown:
            identifier = attachment_id(volume.uid, host, found.disk.domain)
            if volume.state is VolumeState.READY and found.disk.alias.startswith(f"ua-vg-{identifier[:8]}-"):
                settled &= _record(world, runner, pool, host, volume, found, identifier)
    return settled


def _record(world: World, runner: Runner, pool: Pool, host: str, volume: Volume, found: FoundDisk, identifier: str) -> bool:
    """Write one record; False if an operation is at the volume: a running attach has its disk before its record."""
    name, disk = VolumeName(pool.name, volume.name), found.disk
    release = runner.hold_if_free(str(name))
    if release is None:
        return False
    try:
        if disk.source not in _files(world, name, host):
            _log.error("a disk with our alias is not the volume's", domain=disk.domain_name, alias=disk.alias, source=disk.source)
            return True
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
    finally:
        release()
    return True
