"""Reads of the truth that use cases decide by: the storage through the pool's lane, the attachments from the record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from volgate.backend import Clones, DataPath, Snapshots, VolumeId
from volgate.connection import LocalFile, as_file
from volgate.errors import Holder, InUse, NotFound, Precondition, Unreachable, VolgateError
from volgate.model import Snapshot, Volume, VolumeState
from volgate.names import SnapshotName, VolumeName
from volgate.operations.context import Context
from volgate.operations.disconnect import is_disconnected
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, fences, index, pool_notes
from volgate.store.database import Commit
from volgate.store.records import AttachmentRecord, IndexedVolume

__all__ = [
    "attachments_of",
    "blockers",
    "find_volume",
    "holders",
    "identity",
    "put",
    "refuse_attached",
    "refuse_held",
    "released",
    "require_accepting",
    "require_uid",
    "require_volume",
    "round_up",
    "snapshot_uid",
    "snapshots_of",
    "source_of",
    "with_fences",
]

_SHOWN = 20


def find_volume(pool: Pool, name: str) -> Volume | None:
    """Read a volume from the storage, None if there is none."""
    try:
        return pool.call(pool.backend().get_volume, name)
    except NotFound:
        return None


def require_volume(pool: Pool, name: VolumeName, uid: str, *, ready: bool = True) -> Volume:
    """Read a volume from the storage. Raises NotFound, Precondition (UID_MISMATCH; not ready)."""
    volume = find_volume(pool, name.volume)
    if volume is None:
        raise NotFound(f"{name} does not exist")
    require_uid(str(name), volume.uid, uid)
    if ready and volume.state is not VolumeState.READY:
        raise Precondition(f"{name} is {volume.state}{': ' + volume.problem if volume.problem else ''}; it cannot be used now")
    return volume


def require_uid(name: str, found: str, meant: str) -> None:
    """Raise Precondition if a caller means another object than the one that has the name now."""
    if meant and meant != found:
        raise Precondition(f"{name} has uid {found} now, not {meant}: the object that was meant is gone", reason="UID_MISMATCH")


def require_accepting(world: World, pool: Pool) -> None:
    """Raise Precondition while the pool is draining, by the word of whichever controller."""
    if world.database.shared:
        with world.database.read() as connection:
            pool.draining = pool.name in pool_notes.draining(connection)
    pool.require_accepting()


def identity(volume: Volume) -> VolumeId:
    """Name a volume for good."""
    return VolumeId(volume.name, volume.uid)


def attachments_of(world: World, pool: str, volume: Volume) -> list[AttachmentRecord]:
    """The attachments of this volume (of this uid), read from the record. Raises Unreachable while its pool's cannot be trusted."""
    if pool not in world.attachments_known:
        raise Unreachable(
            f"{pool}/{volume.name}: the database is new, and a host or pools/{pool} has not told yet what it has, so nobody knows what is "
            f"attached; start libvirt on {', '.join(sorted(world.hosts)[:_SHOWN])}, look at the health of pools/{pool}, and repeat",
            retry_after=5.0,
        )
    with world.database.read() as connection:
        found = attachments.of_volume(connection, pool, volume.name)
    return [record for record in found if record.volume_uid == volume.uid]


def holders(records: list[AttachmentRecord]) -> tuple[Holder, ...]:
    """Name attachments as holders."""
    return tuple(Holder("attachment", f"attachments/{r.id}", f"domain {r.domain_name} on hosts/{r.host}") for r in records)


def refuse_attached(ctx: Context, pool: Pool, volume: Volume, act: str) -> None:
    """Raise InUse if the volume is attached; a record whose domain provably lets go is dropped first."""
    held = [record for record in attachments_of(ctx.world, pool.name, volume) if not released(ctx, record)]
    if held:
        raise InUse(f"{act}: {volume.name} is attached to {', '.join(r.domain_name for r in held)}; detach it first", holders=holders(held))


def refuse_held(world: World, pool: Pool, volume: Volume, act: str) -> None:
    """Raise InUse if the volume has any attachment on record."""
    if held := attachments_of(world, pool.name, volume):
        raise InUse(f"{act}: {volume.name} is attached to {', '.join(r.domain_name for r in held)}; detach it first", holders=holders(held))


def released(ctx: Context, record: AttachmentRecord) -> bool:
    """Whether it is proven that a recorded disk is nowhere any more, or kept out; its record then goes with this operation's commit."""
    with ctx.world.database.read() as connection:
        kept_out = fences.holds(connection, record.host, record.pool)
    if kept_out:
        ctx.commit(lambda commit: _forget_kept_out(commit, record))
        return True
    if record.host not in ctx.world.hosts or record.state == "prepared":
        return False
    timeout = ctx.world.settings.limits.libvirt_timeout
    try:
        seen = ctx.world.host(record.host)[1].presence(record.domain, record.alias, record.source, timeout=timeout)
    except VolgateError:
        return False
    if seen.live or seen.config or seen.qemu or not is_disconnected(ctx.world, record.host, record.source, record.id):
        return False
    ctx.commit(lambda commit: attachments.forget(commit, record.id))
    return True


def with_fences(world: World, records: Sequence[AttachmentRecord]) -> list[AttachmentRecord]:
    """The same, each whose host is kept out of its pool with that as its problem: nothing else shows at a disk that is still there."""
    with world.database.read() as connection:
        known = [one for host in {record.host for record in records} for one in fences.of_host(connection, host)]
    problems = {(one.host, one.pool): _kept_out(one) for one in known}
    shown = []
    for record in records:
        told = [text for text in (problems.get((record.host, record.pool), ""), record.problem) if text]
        shown.append(replace(record, problem="; ".join(told)))
    return shown


def _kept_out(found: fences.Fence) -> str:
    if not found.proven:
        return f"hosts/{found.host} is being fenced from pool {found.pool}, or let in again: repeat FenceHost, or UnfenceHost"
    return (
        f"hosts/{found.host} is fenced: its guest cannot reach pool {found.pool}, and the volume may be attached elsewhere; stop the domain"
        " and let the host in again (UnfenceHost), or attach the volume elsewhere"
    )


def _forget_kept_out(commit: Commit, record: AttachmentRecord) -> None:
    """Raise Precondition if its host was let in since: the volume may have another writer."""
    if not fences.holds(commit, record.host, record.pool):
        raise Precondition(f"hosts/{record.host} was let in again while this ran; repeat the call", reason="PRECONDITION")
    attachments.forget(commit, record.id)


def snapshots_of(pool: Pool, volume: Volume) -> list[Snapshot]:
    """The snapshots of a volume, oldest first; none where the backend has none."""
    backend = pool.backend()
    return list(pool.call(backend.list_snapshots, identity(volume))) if isinstance(backend, Snapshots) else []


def blockers(world: World, pool: Pool, volume: Volume) -> tuple[str, ...]:
    """Everything that holds a volume, as resource names."""
    names = [f"attachments/{record.id}" for record in attachments_of(world, pool.name, volume)]
    base = str(VolumeName(pool.name, volume.name))
    names += [f"{base}/snapshots/{snapshot.name}" for snapshot in snapshots_of(pool, volume)]
    backend = pool.backend()
    if isinstance(backend, Clones):
        names += [str(VolumeName(pool.name, child)) for child in pool.call(backend.children, identity(volume))]
    return tuple(names)


def source_of(pool: Pool, volume: Volume, snapshot: str) -> LocalFile:
    """Where the bytes of a volume, or with a name of its snapshot, are. Raises NotFound, Unsupported."""
    return as_file(pool.call(pool.facet(DataPath).image, identity(volume), snapshot_uid(pool, volume, snapshot)))


def snapshot_uid(pool: Pool, volume: Volume, snapshot: str) -> str:
    """The uid of a volume's snapshot by its name, "" for no name. Raises NotFound, Unsupported."""
    if not snapshot:
        return ""
    found = next((s for s in snapshots_of(pool, volume) if s.name == snapshot), None)
    if found is None:
        raise NotFound(f"{SnapshotName(pool.name, volume.name, snapshot)} does not exist")
    return found.uid


def round_up(size: int, grain: int) -> int:
    """Round a size in bytes up to a multiple of `grain`."""
    return -(-size // grain) * grain


def put(ctx: Context, pool: Pool, volume: Volume, *, fresh: bool = False) -> IndexedVolume:
    """Put the volume's row into the operation's commit and return it as the answer. `fresh`: this operation made it, nothing holds it."""
    now = time.time()
    ctx.uid = volume.uid
    ctx.commit(lambda commit: index.put_volume(commit, pool.name, volume, now))
    with ctx.world.database.read() as connection:
        found = [] if fresh else attachments.of_volume(connection, pool.name, volume.name)
    held = tuple(record.id for record in found if record.volume_uid == volume.uid)
    return IndexedVolume(pool.name, volume, now, held)
