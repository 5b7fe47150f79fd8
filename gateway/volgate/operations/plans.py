"""What relabelling, adoption, snapshots and a detach would do, for validate_only: refused as the call would be, nothing changed."""

from __future__ import annotations

from volgate.backend import Adopts, Clones, Relabels, Reverts, Snapshots
from volgate.errors import AlreadyExists, NotFound
from volgate.model import Volume
from volgate.names import VolumeName
from volgate.operations import limits, lookups, requests
from volgate.operations.requests import Plan
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments

__all__ = ["plan_adopt", "plan_detach", "plan_revert", "plan_snapshot", "plan_snapshot_deletion", "plan_update"]


def plan_update(world: World, request: requests.UpdateVolume) -> Plan:
    """What new labels and limits would do."""
    pool = world.pools.get(request.name.pool)
    volume = lookups.require_volume(pool, request.name, request.uid)
    steps = tuple(f"limit {record.domain_name}" for record in limits.limited(world, pool, volume)) if request.qos is not None else ()
    if request.labels is not None:
        pool.facet(Relabels)
        steps += () if volume.labels == request.labels else ("relabel",)
    return Plan(steps)


def plan_revert(world: World, request: requests.RevertVolume) -> Plan:
    """What a revert would do, and which attachments block it."""
    pool = world.pools.get(request.name.pool)
    pool.facet(Reverts)
    volume = lookups.require_volume(pool, request.name, request.uid)
    if request.snapshot not in {snapshot.name for snapshot in lookups.snapshots_of(pool, volume)}:
        raise NotFound(f"snapshot: {request.name}/snapshots/{request.snapshot} does not exist", field="snapshot")
    return Plan(("revert",), 0, _attachments(world, pool, volume))


def plan_adopt(world: World, request: requests.AdoptVolume) -> Plan:
    """What an adoption would do; the object itself is looked at by the call alone."""
    pool = world.pools.get(request.pool)
    adopts = pool.facet(Adopts)
    lookups.require_accepting(world, pool)
    if existing := lookups.find_volume(pool, request.volume):
        raise AlreadyExists(f"{request.target} exists with uid {existing.uid}; adopt under another name", metadata={"uid": existing.uid})

    def foreign() -> set[str]:
        return {found.locator for found in adopts.list_foreign()}

    if request.locator not in pool.call(foreign):
        raise NotFound(f"{request.locator} is no foreign object of pool {request.pool}", field="locator")
    return Plan(("adopt",))


def plan_snapshot(world: World, request: requests.CreateSnapshot) -> Plan:
    """What a snapshot would do; an attached volume without snapshots of its own is switched to a new layer."""
    pool = world.pools.get(request.name.pool)
    backend = pool.facet(Snapshots)
    volume = lookups.require_volume(pool, request.name.of, request.volume_uid)
    if request.name.snapshot in {snapshot.name for snapshot in lookups.snapshots_of(pool, volume)}:
        return Plan(("return the existing snapshot",))
    if backend.traits.online_snapshots != "native" and lookups.attachments_of(world, pool.name, volume):
        return Plan(("prepare overlay", "switch guest", "finish overlay"))
    return Plan(("cut",))


def plan_snapshot_deletion(world: World, request: requests.DeleteSnapshot) -> Plan:
    """What the deletion of a snapshot would do, and which clones block it."""
    pool = world.pools.get(request.name.pool)
    pool.facet(Snapshots)
    volume = lookups.find_volume(pool, request.name.volume)
    found = next((s for s in lookups.snapshots_of(pool, volume) if s.name == request.name.snapshot), None) if volume else None
    if volume is None or found is None:
        return Plan(())
    lookups.require_uid(str(request.name), found.uid, request.uid)
    return Plan(("delete",), 0, _clones(pool, volume, found.uid))


def plan_detach(world: World, request: requests.DetachVolume) -> Plan:
    """What a detach would do."""
    with world.database.read() as connection:
        record = attachments.find(connection, request.attachment)
    return Plan(("detach",) if record else ())


def _attachments(world: World, pool: Pool, volume: Volume) -> tuple[str, ...]:
    return tuple(f"attachments/{record.id}" for record in lookups.attachments_of(world, pool.name, volume))


def _clones(pool: Pool, volume: Volume, snapshot_uid: str) -> tuple[str, ...]:
    """The volumes that were made of one snapshot."""
    backend = pool.backend()
    if not isinstance(backend, Clones):
        return ()
    children = [lookups.find_volume(pool, name) for name in pool.call(backend.children, lookups.identity(volume))]
    made = [child.name for child in children if child and child.source and child.source.snapshot_uid == snapshot_uid]
    return tuple(str(VolumeName(pool.name, name)) for name in made)
