"""Whom a storage lets reach a volume: a host before it connects, and no more once it has let go. Nothing, where a storage asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from volgate.backend import Initiator, Publishes, VolumeId
from volgate.errors import NotFound
from volgate.hosts.interface import Host
from volgate.names import VolumeName
from volgate.operations.context import Context
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, hosts
from volgate.store.records import AttachmentRecord

_log = structlog.get_logger()
__all__ = ["close", "close_to_all", "initiator", "open_again", "open_to", "shut_out", "shut_out_released", "undo_opening"]


def open_to(ctx: Context, pool: Pool, volume: VolumeId, name: str, host: Host, attachment: str) -> None:
    """Let a host reach a volume before it is attached there. Whoever has no attachment of it is shut out: a host that was released."""
    backend = pool.backend()
    if not isinstance(backend, Publishes):
        return
    with ctx.step("publish", undo=lambda: shut_out(ctx.world, pool, volume, name, attachment)):
        known = {record.host for record in _records(ctx.world, pool.name, volume)}
        _unpublish(pool, volume, [other for other in pool.call(backend.published, volume) if other not in {*known, name}])
        open_again(pool, volume, name, host)


def open_again(pool: Pool, volume: VolumeId, name: str, host: Host) -> None:
    """Let a host reach a volume that it has: it comes back after it was released, or the storage has forgotten it."""
    backend = pool.backend()
    if isinstance(backend, Publishes):
        pool.call(backend.publish, volume, initiator(name, host))


def initiator(name: str, host: Host) -> Initiator:
    """What a storage may know a host by."""
    identity = host.info().identity
    return Initiator(name, identity.iqn, identity.nqn, identity.reservation_key)


def undo_opening(ctx: Context, pool: Pool, volume: VolumeId, name: str, attachment: str) -> None:
    """Register what takes back an opening of an earlier attempt, if that came so far."""
    ctx.undo_earlier("publish", lambda: shut_out(ctx.world, pool, volume, name, attachment))


def shut_out(world: World, pool: Pool, volume: VolumeId, name: str, attachment: str) -> None:
    """Keep a host out that has let go of an attachment, unless it has another of the same volume."""
    if isinstance(pool.backend(), Publishes) and name not in _others(world, pool.name, volume, attachment):
        _unpublish(pool, volume, [name])


def close(world: World, record: AttachmentRecord) -> None:
    """As `shut_out`, of what is on record; a pool that is served no more, or in quarantine, is not touched."""
    try:
        pool = world.pools.get(record.pool)
    except NotFound:
        return
    if not (pool.quarantine or pool.unserved):
        shut_out(world, pool, VolumeId(record.volume, record.volume_uid), record.host, record.id)


def close_to_all(pool: Pool, volume: VolumeId) -> None:
    """Let nobody reach a volume that has no attachment: hosts that were released may be left."""
    backend = pool.backend()
    if isinstance(backend, Publishes):
        _unpublish(pool, volume, list(pool.call(backend.published, volume)))


def shut_out_released(world: World, pool: Pool, volumes: Iterable[VolumeId], hold: Callable[[str], Callable[[], None] | None]) -> None:
    """Keep hosts out that were released while the storage could not be asked; `hold` locks a volume by name, or tells that it is not free.

    Of those alone: after a lost database nothing else tells whether a host still uses a volume. Raises VolgateError.
    """
    backend = pool.backend()
    released = {record.name for record in world.hosts.records() if record.released}
    if not (released and isinstance(backend, Publishes)):
        return
    for volume in volumes:
        if not released.intersection(pool.call(backend.published, volume)):
            continue
        if (let_go := hold(str(VolumeName(pool.name, volume.name)))) is None:
            continue  # an operation is at it; there is a next time
        try:
            _unpublish(pool, volume, [name for name in pool.call(backend.published, volume) if _is_released(world, name)])
        finally:
            let_go()


def _unpublish(pool: Pool, volume: VolumeId, names: list[str]) -> None:
    backend = pool.facet(Publishes)
    for name in names:
        pool.call(backend.unpublish, volume, name)
        _log.info("volume unpublished", pool=pool.name, volume=volume.name, host=name)


def _is_released(world: World, name: str) -> bool:
    """Whether the database says so: another controller may have taken the host in again since this one looked."""
    with world.database.read() as connection:
        record = hosts.find(connection, name)
    return record is not None and record.released


def _others(world: World, pool: str, volume: VolumeId, attachment: str) -> set[str]:
    return {record.host for record in _records(world, pool, volume) if record.id != attachment}


def _records(world: World, pool: str, volume: VolumeId) -> list[AttachmentRecord]:
    with world.database.read() as connection:
        found = attachments.of_volume(connection, pool, volume.name)
    return [record for record in found if record.volume_uid == volume.uid]
