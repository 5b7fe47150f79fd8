"""Use cases of snapshots: cut one (under a running guest too), delete one, merge layers that nobody needs."""

from __future__ import annotations

import time
from dataclasses import replace

from volgate.backend import Overlays, Snapshots, SnapshotSpec
from volgate.errors import AlreadyExists, InDoubt, InUse, NotFound, Precondition, Unreachable
from volgate.model import Format, Snapshot, Volume
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
    volume = lookups.require_volume(pool, request.name.of, request.volume_uid)
    existing = next((s for s in lookups.snapshots_of(pool, volume) if s.name == request.name.snapshot), None)
    if existing is not None and existing.uid != ctx.drawn_uid:
        _refuse_different(request, existing)
        return _put(ctx, pool, existing, volume)
    spec = SnapshotSpec(request.name.snapshot, ctx.drawn_uid, request.labels, quiesced=request.quiesce)
    held = [record for record in lookups.attachments_of(ctx.world, pool.name, volume) if not lookups.released(ctx, record)]
    if not held or backend.traits.online_snapshots == "native":
        if request.quiesce:
            raise Precondition("quiesce: the volume is not attached, there is no guest to freeze", field="quiesce")
        with ctx.step("cut", undo=lambda: pool.call(backend.delete_snapshot, lookups.identity(volume), spec.uid)):
            snapshot = pool.call(backend.create_snapshot, lookups.identity(volume), spec)
    else:
        snapshot = _cut_under_guest(ctx, pool, volume, spec, held)
    return _put(ctx, pool, snapshot, lookups.require_volume(pool, request.name.of, volume.uid))


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
    if len(held) != 1 or held[0].state is not AttachmentState.ATTACHED:
        raise InUse(f"{volume.name} has several or prepared attachments; detach all but one", holders=lookups.holders(held))
    record = held[0]
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
    now = time.time()
    lookups.put(ctx, pool, volume)
    ctx.uid = snapshot.uid
    ctx.commit(lambda commit: index.put_snapshot(commit, pool.name, snapshot, now))
    return IndexedSnapshot(pool.name, snapshot, now)
