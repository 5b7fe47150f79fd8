"""The use case of a group of snapshots: several volumes of a pool at one moment, all or none."""

from __future__ import annotations

import time
import uuid
from functools import partial

from volgate.backend import GroupMember, Groups, SnapshotSpec
from volgate.errors import AlreadyExists, InUse
from volgate.model import Volume
from volgate.names import SnapshotName, VolumeName
from volgate.operations import lookups, requests
from volgate.operations.context import Context
from volgate.operations.requests import Plan
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import index
from volgate.store.records import IndexedSnapshot

__all__ = ["create_group", "plan_group"]


def create_group(ctx: Context, request: requests.CreateSnapshotGroup) -> tuple[IndexedSnapshot, ...]:
    """Cut the snapshots. The uid that was drawn is the group's; those of its members are made of it, so that a repeat finds them."""
    pool = ctx.world.pools.get(request.pool)
    backend = pool.facet(Groups)
    members = _members(ctx, pool, request)

    def undo() -> None:
        for member in members:
            pool.call(backend.delete_snapshot, member.volume, member.spec.uid)

    ctx.undo_earlier("cut", undo)
    _refuse_taken(pool, request, members)
    if backend.traits.online_snapshots != "native":
        for volume in _volumes(pool, request):
            held = [record for record in lookups.attachments_of(ctx.world, pool.name, volume) if not lookups.released(ctx, record)]
            if held:
                told = f"{volume.name} is attached to {held[0].domain_name}; this pool cuts no snapshots of attached volumes: detach it"
                raise InUse(told, holders=lookups.holders(held))
    with ctx.step("cut", undo=undo):
        cut = pool.call(backend.create_snapshot_group, ctx.drawn_uid, members)
    now = time.time()
    for volume in _volumes(pool, request):
        lookups.put(ctx, pool, volume)
    for snapshot in cut:
        ctx.commit(partial(index.put_snapshot, pool=pool.name, found=snapshot, now=now))
    ctx.uid = ctx.drawn_uid
    return tuple(IndexedSnapshot(pool.name, snapshot, now) for snapshot in cut)


def plan_group(world: World, request: requests.CreateSnapshotGroup) -> Plan:
    """What a group would do, and which attachments block it."""
    pool = world.pools.get(request.pool)
    native = pool.facet(Groups).traits.online_snapshots == "native"
    volumes = _volumes(pool, request)
    _refuse_taken(pool, request, ())
    held = [] if native else [record for volume in volumes for record in lookups.attachments_of(world, pool.name, volume)]
    return Plan(("cut",), 0, tuple(f"attachments/{record.id}" for record in held))


def _volumes(pool: Pool, request: requests.CreateSnapshotGroup) -> list[Volume]:
    uids = request.volume_uids
    return [lookups.require_volume(pool, VolumeName(pool.name, name), uids.get(name, "")) for name, _ in request.snapshots]


def _members(ctx: Context, pool: Pool, request: requests.CreateSnapshotGroup) -> list[GroupMember]:
    group = uuid.UUID(ctx.drawn_uid)
    return [
        GroupMember(lookups.identity(volume), SnapshotSpec(name, str(uuid.uuid5(group, volume.uid)), request.labels))
        for volume, (_, name) in zip(_volumes(pool, request), request.snapshots, strict=True)
    ]


def _refuse_taken(pool: Pool, request: requests.CreateSnapshotGroup, ours: list[GroupMember] | tuple[()]) -> None:
    """Raise AlreadyExists for a snapshot of such a name that this group has not cut: it may be of another moment."""
    mine = {member.spec.uid for member in ours}
    for volume, (_, name) in zip(_volumes(pool, request), request.snapshots, strict=True):
        found = next((cut for cut in lookups.snapshots_of(pool, volume) if cut.name == name and cut.uid not in mine), None)
        if found is not None:
            full = SnapshotName(pool.name, volume.name, name)
            told = f"{full} exists, and may be of another moment; take other names, or repeat an earlier call with its request_id"
            raise AlreadyExists(told, metadata={"uid": found.uid})
