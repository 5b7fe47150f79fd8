"""Use cases of volumes: create, delete, expand, relabel, revert, adopt. Each runs again with the same facts after a crash."""

from __future__ import annotations

from volgate.backend import Adopts, Clones, Measures, Relabels, Resizes, Reverts
from volgate.backend.facets import VolumeId
from volgate.connection import is_connected
from volgate.errors import AlreadyExists, Cancelled, InDoubt, InvalidRequest, NotFound, OutOfRange, OutOfSpace, Unreachable, VolgateError
from volgate.model import Format, Provisioning, Source, SourceKind, Volume, VolumeSpec
from volgate.names import SnapshotName, VolumeName, parse_content
from volgate.operations import limits, lookups, making, publishing, requests
from volgate.operations.context import Context
from volgate.operations.requests import Plan
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import index
from volgate.store.records import IndexedVolume

__all__ = [
    "adopt_volume",
    "create_volume",
    "delete_volume",
    "expand_volume",
    "plan_create",
    "plan_delete",
    "plan_expand",
    "plan_simple",
    "revert_volume",
    "update_volume",
]


def create_volume(ctx: Context, request: requests.CreateVolume) -> IndexedVolume:
    """Make a volume, or return the one that an equal request made."""
    pool = ctx.world.pools.get(request.pool)
    ctx.undo_earlier("create", lambda: making.delete(pool, VolumeId(request.volume, ctx.drawn_uid)))
    try:
        return _make(ctx, pool, request)
    except VolgateError as error:  # whatever refuses a repeat, the volume that is there answers it
        existing = None if isinstance(error, Unreachable | InDoubt | Cancelled) else lookups.find_volume(pool, request.volume)
        if existing is None or existing.uid == ctx.drawn_uid:
            raise
        _refuse_different(request, existing)
        return lookups.put(ctx, pool, existing)


def _make(ctx: Context, pool: Pool, request: requests.CreateVolume) -> IndexedVolume:
    lookups.require_accepting(ctx.world, pool)
    spec = specify(ctx.world, pool, request, ctx.drawn_uid)
    if spec.source is not None and spec.source.kind is SourceKind.VOLUME:
        source = VolumeName(request.pool, spec.source.volume)
        lookups.refuse_attached(ctx, pool, lookups.require_volume(pool, source, spec.source.volume_uid), f"clone {source}")
    with ctx.step("create", undo=lambda: making.delete(pool, VolumeId(spec.name, spec.uid))):
        volume = making.make(pool, spec)
    independent = pool.backend().traits.independent_clones
    if spec.source is not None and not independent and (origin := lookups.find_volume(pool, spec.source.volume)):
        lookups.put(ctx, pool, origin)  # a clone may freeze what its source wrote to
    return lookups.put(ctx, pool, volume, fresh=True)


def specify(world: World, pool: Pool, request: requests.CreateVolume, uid: str) -> VolumeSpec:
    """Complete a request by the pool's traits and the source. Raises OutOfRange, InvalidRequest, NotFound."""
    traits = pool.backend().traits
    source, origin_size, origin_format = _source(pool, request)
    asked = request.size or origin_size
    if asked < origin_size:
        raise OutOfRange(f"size_bytes: {asked} is less than the source's {origin_size}; a clone is never smaller", field="size_bytes")
    wanted = request.format or origin_format or traits.formats[0]
    _check_size(world, pool, asked)
    if wanted not in traits.formats:
        raise InvalidRequest(f"format: pool {pool.name} makes {', '.join(traits.formats)}, not {wanted}", field="format")
    return VolumeSpec(
        name=request.volume,
        uid=uid,
        size=asked,
        format=Format(wanted),
        provisioning=request.provisioning,
        source=source,
        labels=request.labels,
    )


def _check_size(world: World, pool: Pool, size: int) -> None:
    traits = pool.backend().traits
    most = min(traits.maximum, world.settings.limits.maximum_volume_bytes)
    if size <= 0:
        raise InvalidRequest("size_bytes: say how large, in bytes", field="size_bytes")
    if not traits.minimum <= size <= most:
        raise OutOfRange(f"size_bytes: {size} is outside {traits.minimum} to {most} of pool {pool.name}", field="size_bytes")


def _source(pool: Pool, request: requests.CreateVolume) -> tuple[Source | None, int, Format | None]:
    """The source of a clone with its size and format; (None, 0, None) for an empty volume."""
    if not request.source:
        return None, 0, None
    wanted = parse_content(request.source, "source")
    name = wanted.of if isinstance(wanted, SnapshotName) else wanted
    if name.pool != request.pool:
        raise InvalidRequest(f"source: {name} is in another pool; a source must be in {request.pool}", field="source")
    pool.facet(Clones)
    volume = lookups.require_volume(pool, name, "")
    if not isinstance(wanted, SnapshotName):
        return Source(SourceKind.VOLUME, volume.name, volume.uid), volume.size, volume.format
    for snapshot in lookups.snapshots_of(pool, volume):
        if snapshot.name == wanted.snapshot:
            return Source(SourceKind.SNAPSHOT, volume.name, volume.uid, snapshot.name, snapshot.uid), snapshot.size, volume.format
    raise NotFound(f"source: {wanted} does not exist", field="source")


def _refuse_different(request: requests.CreateVolume, existing: Volume) -> None:
    """Raise AlreadyExists naming what differs from what the existing volume was asked to be."""
    origin = existing.source
    source = ""
    if origin is not None and origin.kind is not SourceKind.EMPTY:
        source = str(VolumeName(request.pool, origin.volume))
        source += f"/snapshots/{origin.snapshot}" if origin.snapshot else ""
    compared = {
        "size_bytes": (existing.requested_size, request.size or existing.requested_size),
        "format": (existing.format, request.format or existing.format),
        "provisioning": (existing.provisioning, request.provisioning),
        "source": (source, request.source),
    }
    differing = [f"{field} is {have or 'none'}, asked {want or 'none'}" for field, (have, want) in compared.items() if have != want]
    if differing:
        raise AlreadyExists(f"{request.target} exists and differs: {'; '.join(differing)}", metadata={"uid": existing.uid})


def delete_volume(ctx: Context, request: requests.DeleteVolume) -> None:
    """Delete a volume; nothing to do if it is gone."""
    pool = ctx.world.pools.get(request.name.pool)
    ctx.commit(lambda commit: index.forget_volume(commit, request.name.pool, request.name.volume))
    if dying := str(ctx.facts.get("deleting", "")):
        ctx.uid = dying
        _remove(ctx, pool, VolumeId(request.name.volume, dying))
        return
    volume = lookups.find_volume(pool, request.name.volume)
    if volume is None:
        return
    ctx.uid = volume.uid
    lookups.require_uid(str(request.name), volume.uid, request.uid)
    lookups.refuse_attached(ctx, pool, volume, f"delete {request.name}")
    ctx.note(deleting=volume.uid)
    _remove(ctx, pool, lookups.identity(volume))


def _remove(ctx: Context, pool: Pool, volume: VolumeId) -> None:
    with ctx.step("delete"):
        publishing.close_to_all(pool, volume)
        making.delete(pool, volume)


def expand_volume(ctx: Context, request: requests.ExpandVolume) -> IndexedVolume:
    """Grow a volume on the storage and, where a guest has it, in the guest."""
    pool = ctx.world.pools.get(request.name.pool)
    resizes = pool.facet(Resizes)
    volume = lookups.require_volume(pool, request.name, request.uid)
    size = max(volume.size, lookups.round_up(request.size, resizes.traits.grain))
    timeout = ctx.world.settings.limits.libvirt_timeout
    records = lookups.attachments_of(ctx.world, pool.name, volume)
    running = [
        (host, record)
        for record in records
        for host in [ctx.world.host(record.host)[1]]
        if host.presence(record.domain, record.alias, record.source, timeout=timeout).live
    ]
    if size > volume.size:
        _check_size(ctx.world, pool, size)
        with ctx.step("storage"):
            volume = making.grow(pool, volume, size, online=bool(running))
    for name, source in sorted({(record.host, record.source) for record in records if is_connected(record.source)}):
        with ctx.step(f"devices of {name}"):  # of a domain that does not run too: it starts with what they say
            ctx.world.host(name)[1].grow(source, size, timeout=timeout)
    for host, record in running:  # also when the storage has the size: an attempt that died may have told only some of the guests
        with ctx.step(f"guest {record.domain_name}"):
            host.resize(record.domain, record.alias, size, timeout=timeout)
    if running:
        volume = lookups.require_volume(pool, request.name, volume.uid)
    return lookups.put(ctx, pool, volume)


def update_volume(ctx: Context, request: requests.UpdateVolume) -> IndexedVolume:
    """Replace the labels on the storage, and the limits of every attachment."""
    pool = ctx.world.pools.get(request.name.pool)
    volume = lookups.require_volume(pool, request.name, request.uid)
    if request.qos is not None:
        limits.limit(ctx, pool, volume, request.qos)
    if request.labels is not None:
        relabels = pool.facet(Relabels)
        with ctx.step("relabel"):
            volume = pool.call(relabels.relabel_volume, lookups.identity(volume), request.labels)
    return lookups.put(ctx, pool, volume)


def revert_volume(ctx: Context, request: requests.RevertVolume) -> IndexedVolume:
    """Set a detached volume back to a snapshot."""
    pool = ctx.world.pools.get(request.name.pool)
    reverts = pool.facet(Reverts)
    volume = lookups.require_volume(pool, request.name, request.uid)
    lookups.refuse_attached(ctx, pool, volume, f"revert {request.name}")
    wanted = request.snapshot.rpartition("/")[2]
    found = next((s for s in lookups.snapshots_of(pool, volume) if s.name == wanted), None)
    if found is None:
        raise NotFound(f"snapshot: {request.name}/snapshots/{wanted} does not exist", field="snapshot")
    with ctx.step("revert"):
        publishing.close_to_all(pool, lookups.identity(volume))
        call = pool.call_long if reverts.traits.long_reverts else pool.call
        volume = call(reverts.revert_volume, lookups.identity(volume), found.uid, token=ctx.operation)
    return lookups.put(ctx, pool, volume)


def adopt_volume(ctx: Context, request: requests.AdoptVolume) -> IndexedVolume:
    """Tag a foreign object. There is no undo: it would delete data that is not ours."""
    pool = ctx.world.pools.get(request.pool)
    adopts = pool.facet(Adopts)
    lookups.require_accepting(ctx.world, pool)
    existing = lookups.find_volume(pool, request.volume)
    if existing is not None and existing.uid != ctx.drawn_uid:
        raise AlreadyExists(f"{request.target} exists with uid {existing.uid}; adopt under another name", metadata={"uid": existing.uid})
    spec = VolumeSpec(request.volume, ctx.drawn_uid, 0, request.format, Provisioning.THIN, labels=request.labels)
    with ctx.step("adopt"):
        volume = pool.call(adopts.adopt_volume, request.locator, spec)
    return lookups.put(ctx, pool, volume)


def plan_create(world: World, request: requests.CreateVolume) -> Plan:
    """What creation would do."""
    pool = world.pools.get(request.pool)
    existing = lookups.find_volume(pool, request.volume)
    if existing is not None:
        _refuse_different(request, existing)
        return Plan(("return the existing volume",))
    lookups.require_accepting(world, pool)
    spec = specify(world, pool, request, "00000000-0000-0000-0000-000000000000")
    copied = making.copied(pool, spec)
    space = spec.size if spec.provisioning is Provisioning.THICK else copied
    _require_room(pool, spec.size, space)
    return Plan(("copy the source" if copied else "create",), space)


def plan_delete(world: World, request: requests.DeleteVolume) -> Plan:
    """What deletion would do, and who blocks it."""
    pool = world.pools.get(request.name.pool)
    volume = lookups.find_volume(pool, request.name.volume)
    if volume is None:
        return Plan(())
    lookups.require_uid(str(request.name), volume.uid, request.uid)
    return Plan(("delete",), 0, lookups.blockers(world, pool, volume))


def plan_expand(world: World, request: requests.ExpandVolume) -> Plan:
    """What expansion would do."""
    pool = world.pools.get(request.name.pool)
    volume = lookups.require_volume(pool, request.name, request.uid)
    if request.size <= volume.size:
        return Plan(())
    _check_size(world, pool, request.size)
    held = lookups.attachments_of(world, pool.name, volume)
    more = request.size - volume.size
    space = more if volume.provisioning is Provisioning.THICK else 0
    _require_room(pool, more, space)
    return Plan(("storage", *(f"guest {r.domain_name}" for r in held)), space)


def _require_room(pool: Pool, promised: int, space: int) -> None:
    """Raise OutOfSpace if the pool, as it is now, cannot promise so many bytes more, or has not so much space."""
    backend = pool.backend()
    if not isinstance(backend, Measures):
        return
    now = pool.call(backend.capacity)
    if now.limit and now.provisioned + promised > now.limit:
        text = f"pool {pool.name} has promised {now.provisioned} of at most {now.limit} bytes; {promised} more are asked"
        raise OutOfSpace(text, reason="OVERSUBSCRIBED")
    if space > now.free:
        raise OutOfSpace(f"pool {pool.name} has {now.free} bytes free; {space} are asked")


def plan_simple(world: World, request: requests.Request) -> Plan:
    """A plan of one step, for what validate_only does not reach."""
    pool = request.target.split("/")[1] if request.target.startswith("pools/") else ""
    if pool:
        world.pools.get(pool).backend()
    return Plan((request.method,))
