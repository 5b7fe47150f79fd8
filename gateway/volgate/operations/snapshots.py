"""Use cases of snapshots: cut one (under a running guest too), delete one, merge layers that nobody needs."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from volgate.backend import Overlays, Snapshots, SnapshotSpec
from volgate.errors import AlreadyExists, InDoubt, InUse, NotFound, Precondition, Unreachable
from volgate.model import Format, Snapshot, Volume, VolumeState
from volgate.names import VolumeName
from volgate.operations import lookups, requests
from volgate.operations.context import Context
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, index
from volgate.store.records import AttachmentRecord, AttachmentState, IndexedSnapshot

__all__ = ["collapse_layers", "create_snapshot", "delete_snapshot", "merge_of"]


def create_snapshot(ctx: Context, request: requests.CreateSnapshot) -> IndexedSnapshot:
    """Cut a snapshot of a volume, or return the one of that name."""
    pool = ctx.world.pools.get(request.name.pool)
    backend = pool.facet(Snapshots)
    spec = SnapshotSpec(request.name.snapshot, ctx.drawn_uid, request.labels, quiesced=request.quiesce)
    native = backend.traits.online_snapshots == "native"
    if native and not request.quiesce and (known := _known(ctx.world, request)) is not None:
        with contextlib.suppress(NotFound, Precondition, AlreadyExists):  # the storage knows better than the index: it is asked below
            return _record(ctx, pool, _cut(ctx, pool, known, spec))
    volume = lookups.require_volume(pool, request.name.of, request.volume_uid)
    existing = _of_that_name(ctx, pool, volume, request)
    if existing is not None:
        return _put(ctx, pool, existing, volume)
    held = [record for record in lookups.attachments_of(ctx.world, pool.name, volume) if not lookups.released(ctx, record)]
    if request.quiesce and not held:
        raise Precondition("quiesce: the volume is not attached, there is no guest to freeze", field="quiesce")
    if native and request.quiesce:
        snapshot = _cut_frozen(ctx, pool, volume, spec, held)
    elif native or not held:
        snapshot = _cut(ctx, pool, volume, spec)
    else:
        snapshot = _cut_under_guest(ctx, pool, volume, spec, held)
    return _put(ctx, pool, snapshot, lookups.require_volume(pool, request.name.of, volume.uid))


def _known(world: World, request: requests.CreateSnapshot) -> Volume | None:
    """The volume as the index has it, if it is ready; whether it is still the one of that uid is for the storage to say."""
    with world.database.read() as connection:
        row = index.find_volume(connection, request.name.pool, request.name.volume)
    if row is None or row.volume.state is not VolumeState.READY or request.volume_uid not in ("", row.volume.uid):
        return None
    return row.volume


def _of_that_name(ctx: Context, pool: Pool, volume: Volume, request: requests.CreateSnapshot) -> Snapshot | None:
    """The snapshot that has the name already, but for this operation's own. Raises AlreadyExists if it was asked to be another."""
    found = next((s for s in lookups.snapshots_of(pool, volume) if s.name == request.name.snapshot), None)
    if found is None or found.uid == ctx.drawn_uid:
        return None
    _refuse_different(request, found)
    return found


def _cut(ctx: Context, pool: Pool, volume: Volume, spec: SnapshotSpec) -> Snapshot:
    backend, identity = pool.facet(Snapshots), lookups.identity(volume)
    with ctx.step("cut", undo=lambda: pool.call(backend.delete_snapshot, identity, spec.uid)):
        return pool.call(backend.create_snapshot, identity, spec)


def _cut_frozen(ctx: Context, pool: Pool, volume: Volume, spec: SnapshotSpec, held: list[AttachmentRecord]) -> Snapshot:
    """Have the storage cut while the guest holds still. One that was cut when that was over is no such snapshot, and goes."""
    record = _only(volume, held)
    _, host = ctx.world.host(record.host)
    timeout = ctx.world.settings.limits.libvirt_timeout
    if ctx.facts.get("frozen") == record.domain:  # an earlier attempt ended somewhere: the guest may be frozen, or was thawed too early
        host.thaw(record.domain, timeout=timeout)
        pool.call(pool.facet(Snapshots).delete_snapshot, lookups.identity(volume), spec.uid)
    ctx.note(frozen=record.domain)
    with ctx.step("freeze guest"):
        host.freeze(record.domain, timeout=timeout)
    still = False
    try:
        snapshot = _cut(ctx, pool, volume, spec)
    finally:
        still = host.thaw(record.domain, timeout=timeout)
    if not still:
        told = f"quiesce: the storage took so long to cut that {record.domain_name} was thawed before; repeat the call"
        raise Unreachable(told, reason="THAWED_EARLY", retry_after=1.0)
    return snapshot


def _only(volume: Volume, held: list[AttachmentRecord]) -> AttachmentRecord:
    if len(held) != 1 or held[0].state is not AttachmentState.ATTACHED:
        raise InUse(f"{volume.name} has several or prepared attachments; detach all but one", holders=lookups.holders(held))
    return held[0]


def _refuse_different(request: requests.CreateSnapshot, existing: Snapshot) -> None:
    """Raise AlreadyExists naming what differs from what the existing snapshot was asked to be."""
    compared = {"labels": (existing.labels, request.labels), "quiesce": (existing.quiesced, request.quiesce)}
    differing = [f"{field} is {have}, asked {want}" for field, (have, want) in compared.items() if have != want]
    if differing:
        raise AlreadyExists(f"{request.name} exists and differs: {'; '.join(differing)}", metadata={"uid": existing.uid})


def _cut_under_guest(ctx: Context, pool: Pool, volume: Volume, spec: SnapshotSpec, held: list[AttachmentRecord]) -> Snapshot:
    """Put a new layer on top and make QEMU write to it."""
    if volume.format is not Format.QCOW2 or pool.backend().traits.online_snapshots != "overlay":
        raise Precondition(
            f"{volume.name} is {volume.format} and attached to {held[0].domain_name}: only a qcow2 volume is snapshotted while attached;"
            " detach it, or use qcow2",
            reason="NEEDS_REFLINK",
        )
    record = _only(volume, held)
    overlays = pool.facet(Overlays)
    _, host = ctx.world.host(record.host)
    timeout = ctx.world.settings.limits.libvirt_timeout
    identity = lookups.identity(volume)
    top = ""

    def abandon() -> None:
        if top and host.presence(record.domain, record.alias, top, timeout=timeout).source == top:
            raise InDoubt(f"the guest writes to {top} already; the snapshot is finished, not undone")
        pool.call(overlays.abandon_overlay, identity, spec.uid)

    with ctx.step("prepare overlay", undo=abandon):
        overlay = pool.call(overlays.prepare_overlay, identity, spec)
        top = overlay.top.source
    with ctx.step("switch guest"):
        try:
            frozen = host.switch_overlay(record.domain, record.alias, overlay.top, overlay.base, quiesce=spec.quiesced, timeout=timeout)
        except Unreachable as error:
            if error.reason == "OVERLAY_TORN":  # the guest goes on upon the new layer, the old one becomes no snapshot
                pool.call(overlays.finish_overlay, identity, spec)
                pool.call(overlays.delete_snapshot, identity, spec.uid)
                ctx.write(lambda commit: attachments.put(commit, replace(record, source=top)))
            raise
    with ctx.step("finish overlay"):
        snapshot = pool.call(overlays.finish_overlay, identity, spec)
    ctx.commit(lambda commit: attachments.put(commit, replace(record, source=top)))
    return replace(snapshot, quiesced=frozen)


def delete_snapshot(ctx: Context, request: requests.DeleteSnapshot) -> None:
    """Delete a snapshot; nothing to do if it is gone."""
    pool = ctx.world.pools.get(request.name.pool)
    backend = pool.facet(Snapshots)
    ctx.commit(lambda commit: index.forget_snapshot(commit, pool.name, request.name.volume, request.name.snapshot))
    volume = lookups.find_volume(pool, request.name.volume)
    if volume is None:
        return
    dying = str(ctx.facts.get("deleting", ""))
    if not dying:
        found = next((s for s in lookups.snapshots_of(pool, volume) if s.name == request.name.snapshot), None)
        if found is None:
            return
        lookups.require_uid(str(request.name), found.uid, request.uid)
        dying = found.uid
        ctx.note(deleting=dying)
    with ctx.step("delete"):
        pool.call(backend.delete_snapshot, lookups.identity(volume), dying)
    lookups.put(ctx, pool, lookups.require_volume(pool, request.name.of, volume.uid, ready=False))
    ctx.uid = dying


def merge_of(world: World, name: VolumeName) -> requests.CollapseLayers | None:
    """The merge of a volume's layers, if it has any and no guest; the use case looks again. Raises VolgateError (the pool is down)."""
    with world.database.read() as connection:
        row = index.find_volume(connection, name.pool, name.volume)
    if row is None or not row.volume.depth or row.attachments or not isinstance(world.pools.get(name.pool).backend(), Overlays):
        return None
    return requests.CollapseLayers(name, row.volume.uid)


def collapse_layers(ctx: Context, request: requests.CollapseLayers) -> None:
    """Merge what no snapshot and no child needs, unless a guest has the volume: then it waits for the detach."""
    pool = ctx.world.pools.get(request.name.pool)
    overlays = pool.facet(Overlays)
    try:
        volume = lookups.require_volume(pool, request.name, request.uid)
    except (NotFound, Precondition):
        return
    if lookups.attachments_of(ctx.world, pool.name, volume):
        return
    with ctx.step("merge"):
        pool.call(overlays.collapse_layers, lookups.identity(volume))
    lookups.put(ctx, pool, lookups.require_volume(pool, request.name, volume.uid))


def _put(ctx: Context, pool: Pool, snapshot: Snapshot, volume: Volume) -> IndexedSnapshot:
    lookups.put(ctx, pool, volume)
    return _record(ctx, pool, snapshot)


def _record(ctx: Context, pool: Pool, snapshot: Snapshot) -> IndexedSnapshot:
    now = time.time()
    ctx.uid = snapshot.uid
    ctx.commit(lambda commit: index.put_snapshot(commit, pool.name, snapshot, now))
    return IndexedSnapshot(pool.name, snapshot, now)
