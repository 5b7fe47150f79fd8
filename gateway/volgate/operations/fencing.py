"""Use cases of fences: keep a host's clients out of the pools that can do that, and let them in again.

A fence is recorded before its effect, so that nothing is attached on the host meanwhile, and is never undone by a failure: what is
proven of one pool stays true while another does not answer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from volgate.backend import Fences, FencesHosts, Holders, Publishes, VolumeId
from volgate.errors import Denied, Holder, InUse, InvalidRequest, NotFound, Precondition, Unreachable, Unsupported
from volgate.operations import publishing, requests
from volgate.operations.context import Context, Parked
from volgate.operations.requests import Plan
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, fences, hosts
from volgate.store.database import Commit
from volgate.store.fences import Fence
from volgate.store.records import AttachmentRecord

__all__ = ["Fenced", "fence_host", "plan_fence", "plan_unfence", "unfence_host"]

_MOST = 100_000
_CLEANING_SECONDS = 60.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Fenced:
    """What a fence came to: the addresses, the names of initiators, and the attachments (ids) of the host that are in no fenced pool."""

    addresses: tuple[str, ...]
    unfenced: tuple[str, ...]
    initiators: tuple[str, ...] = ()


def fence_host(ctx: Context, request: requests.FenceHost) -> Fenced:
    """Fence a host in each pool, and record each once it is proven."""
    world, name = ctx.world, request.host
    pools, held = _pools(world, name), _attachments(world, name)
    addresses = _noted(ctx) or _addresses(world, request, pools, held)
    ctx.note(addresses=",".join(addresses))
    for pool in pools:
        with ctx.step(f"fence {pool.name}"):
            known = _known(world, name, pool.name)
            whole = tuple(sorted({*(known.addresses if known else ()), *_clients(world, name, pool, addresses)}))
            begun = Fence(name, pool.name, whole, proven=known is not None and known.proven, at=time.time())
            ctx.write(partial(_begin, begun=begun))
            try:
                _keep_out(world, name, pool, whole)
            except (Denied, InvalidRequest, Precondition):  # refused before anything was done
                ctx.write(partial(fences.put, found=known) if known else partial(fences.forget, host=name, pool=pool.name))
                raise
            ctx.write(partial(fences.put, found=Fence(name, pool.name, whole, proven=True, at=time.time())))
    unfenced = tuple(record.id for record in held if record.pool not in {pool.name for pool in pools})
    names = {one for pool in pools for one in _clients(world, name, pool, ())}
    return Fenced(addresses, unfenced, tuple(sorted(names)))


def unfence_host(ctx: Context, request: requests.UnfenceHost) -> None:
    """Let a host in again, once its domains have no disk of a volume that is elsewhere, and run with none that was fenced."""
    world, name = ctx.world, request.host
    world.host(name)
    with world.database.read() as connection:
        known = fences.of_host(connection, name)
    if known:
        _clean(ctx, name)
    if not request.assume_restarted:
        _refuse_running(world, name, known)
    for found in known:
        _pool_of(world, found)
    if known:
        ctx.write(partial(_lift, known=known))
    for found in known:
        pool = _pool_of(world, found)
        with ctx.step(f"unfence {pool.name}"):
            _let_in(world, name, pool, _only(world, found))
            ctx.write(partial(fences.forget, host=name, pool=pool.name))


def _clean(ctx: Context, name: str) -> None:
    """Let the host be looked at as one that returns: disks of volumes that are elsewhere are taken from its domains.

    One that cannot be asked is looked at when it registers.
    """
    fleet = ctx.world.hosts
    if not ctx.facts.get("cleaning"):
        ctx.write(partial(_mark_returning, name=name))
        fleet.put(replace(fleet.record(name), returning=True))
        ctx.note(cleaning=time.time())
    if name not in fleet.unsettled() or not fleet.standing(name).info.live:
        return
    ctx.raise_if_cancelled()
    if time.time() - float(ctx.facts["cleaning"]) > _CLEANING_SECONDS:
        told = f"hosts/{name}: a domain does not let go of a disk whose volume is elsewhere; stop it, and repeat the call"
        raise Unreachable(told, reason="HOST_UNSETTLED", retry_after=5.0)
    raise Parked(_LOOK_SECONDS)


def _mark_returning(commit: Commit, *, name: str) -> None:
    record = hosts.find(commit, name)
    if record is None:
        raise NotFound(f"hosts/{name} is not known any more")
    hosts.put(commit, replace(record, returning=True))


def plan_fence(world: World, request: requests.FenceHost) -> Plan:
    """What a fence would do."""
    pools = _pools(world, request.host)
    addresses = _addresses(world, request, pools, _attachments(world, request.host))
    return Plan(tuple(f"fence {', '.join(_clients(world, request.host, pool, addresses))} in {pool.name}" for pool in pools))


def plan_unfence(world: World, request: requests.UnfenceHost) -> Plan:
    """What it would do to let a host in."""
    world.host(request.host)
    with world.database.read() as connection:
        known = fences.of_host(connection, request.host)
    return Plan(tuple(f"unfence {', '.join(found.addresses)} in {found.pool}" for found in known))


def _begin(commit: Commit, begun: Fence) -> None:
    """Record that a host is being fenced. Raises NotFound if it was removed meanwhile."""
    if hosts.find(commit, begun.host) is None:
        raise NotFound(f"hosts/{begun.host} is not known any more")
    fences.put(commit, begun)


def _pools(world: World, name: str) -> list[Pool]:
    """The pools to fence in. Raises NotFound, Precondition (FENCE_SELF), Unsupported, Unreachable (POOL_DOWN)."""
    world.host(name)
    if name in world.hosts.local:
        told = f"hosts/{name} is this gateway's own process: it would keep itself out; fence it from a controller elsewhere, or stop it"
        raise Precondition(told, reason="FENCE_SELF")
    attached = {record.pool for record in _attachments(world, name)}
    found = []
    for pool in world.pools:
        try:
            pool.require_served()
            if _can(world, name, pool):
                found.append(pool)
        except (Unreachable, Precondition):  # it is down, or in quarantine: what it can do is not known, or not to be done
            if pool.name in attached:
                raise
    if not found:
        raise Unsupported(f"hosts/{name}: none of the pools can fence; stop the machine, then release it (ReleaseHost)")
    return found


def _can(world: World, name: str, pool: Pool) -> bool:
    """Whether a pool can keep a host out: one that does so volume by volume, while all that the host has is on record, or noted there."""
    backend = pool.backend()
    if not isinstance(backend, FencesHosts) or isinstance(backend, Publishes):
        return isinstance(backend, Fences | FencesHosts)
    record = world.hosts.record(name)
    told = pool.name in world.attachments_known and not (record.released or record.returning or record.new)
    return told or (_known(world, name, pool.name) is not None and name in pool.call(backend.fenced_hosts))


def _attachments(world: World, name: str) -> list[AttachmentRecord]:
    with world.database.read() as connection:
        return attachments.page(connection, host=name, limit=_MOST)


def _volumes(held: Iterable[AttachmentRecord], pool: Pool) -> list[VolumeId]:
    return sorted({VolumeId(r.volume, r.volume_uid) for r in held if r.pool == pool.name}, key=lambda volume: volume.name)


def _noted(ctx: Context) -> tuple[str, ...]:
    """What an earlier attempt began with: the storage tells no holders any more once they are fenced."""
    found = str(ctx.facts.get("addresses", ""))
    return tuple(found.split(",")) if found else ()


def _known(world: World, host: str, pool: str) -> Fence | None:
    with world.database.read() as connection:
        return next((found for found in fences.of_host(connection, host) if found.pool == pool), None)


def _addresses(world: World, request: requests.FenceHost, pools: list[Pool], held: list[AttachmentRecord]) -> tuple[str, ...]:
    """Where the host's clients are, for the pools that ask that. Raises InvalidRequest if nobody knows."""
    pools = [pool for pool in pools if isinstance(pool.backend(), Fences)]
    if request.addresses or not pools:
        return tuple(sorted(set(request.addresses)))
    found = {address for pool in pools for address in _seen(world, pool, request.host, held)}
    elsewhere = {_host_part(record.address) for record in world.hosts.records() if record.name != request.host}
    found |= {_host_part(world.hosts.record(request.host).address)}
    found -= {"", *elsewhere}
    if not found:
        told = f"addresses: nobody knows where the clients of hosts/{request.host} are; name their IP addresses in the storage's network"
        raise InvalidRequest(told, field="addresses")
    return tuple(sorted(found))


def _clients(world: World, name: str, pool: Pool, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """What a pool knows the host by: addresses, or the name by which it logs in; its own name where it has none."""
    backend, iqn = pool.backend(), world.host(name)[1].info().identity.iqn
    return (addresses if isinstance(backend, Fences) else ()) + ((iqn or name,) if isinstance(backend, FencesHosts) else ())


def _keep_out(world: World, name: str, pool: Pool, clients: tuple[str, ...]) -> None:
    """Have it proven that the pool takes nothing of a host any more, once it is on record that nothing more is attached there."""
    backend, volumes = pool.backend(), _volumes(_attachments(world, name), pool)
    if isinstance(backend, Fences):
        pool.call(backend.fence, clients, volumes)
    if isinstance(backend, FencesHosts):
        pool.call(backend.fence_host, publishing.initiator(name, world.host(name)[1]), volumes)


def _let_in(world: World, name: str, pool: Pool, clients: tuple[str, ...]) -> None:
    """Let a host in again; where volumes are published, those that it still has are."""
    backend = pool.backend()
    if isinstance(backend, Fences):
        pool.call(backend.unfence, clients)
    if isinstance(backend, FencesHosts):
        pool.call(backend.unfence_host, name)
    if isinstance(backend, FencesHosts) and isinstance(backend, Publishes):
        for volume in _volumes(_attachments(world, name), pool):
            with contextlib.suppress(NotFound, Precondition):  # it is gone, or the host has lost its name: an attach says so
                publishing.open_again(pool, volume, name, world.host(name)[1])


def _seen(world: World, pool: Pool, name: str, held: list[AttachmentRecord]) -> set[str]:
    """Who has the volumes open that are attached on this host alone: of those who lock, else of all."""
    backend = pool.backend()
    if not isinstance(backend, Holders):
        return set()
    found = set[str]()
    for volume in _volumes(held, pool):
        with world.database.read() as connection:
            others = [record for record in attachments.of_volume(connection, pool.name, volume.name) if record.host != name]
        if others:
            continue
        try:
            told = pool.call(backend.holders, volume)
        except (NotFound, Precondition):  # it is gone, or made anew: whoever has it open is not of this attachment
            continue
        found |= {holder.address for holder in told if holder.locks} or {holder.address for holder in told}
    return {_host_part(address) for address in found}


def _host_part(address: str) -> str:
    """The IP address in `IP`, `HOST:PORT` or `HOST:PORT/NONCE`, "" where HOST is a name."""
    for text in (address, address.rpartition(":")[0]):
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text.strip("[]")))
    return ""


def _refuse_running(world: World, name: str, known: list[Fence]) -> None:
    """Raise InUse naming the domains that still have disks of these pools; Unreachable if the host cannot be asked."""
    pools = {found.pool for found in known}
    if not pools:
        return
    _, host = world.host(name)
    try:
        disks = host.our_disks(timeout=world.settings.limits.libvirt_timeout)
    except Unreachable as error:
        told = f"{error.message}; or say that all that ran there was stopped (volgate host unfence {name} --assume-restarted)"
        raise Unreachable(told, reason=error.reason, retry_after=error.retry_after) from error
    elsewhere = {record.alias for record in _attachments(world, name) if record.pool not in pools}
    left = [found.disk for found in disks if found.disk.live and found.disk.alias not in elsewhere]
    if left:
        names = ", ".join(sorted({disk.domain_name for disk in left}))
        told = f"hosts/{name}: {names} still runs with disks that were fenced; stop it, or detach them, then unfence the host"
        raise InUse(told, holders=tuple(Holder("domain", disk.domain_name, disk.source) for disk in left))


def _pool_of(world: World, found: Fence) -> Pool:
    if found.pool not in world.pools:
        told = f"hosts/{found.host} is fenced in pool {found.pool}, which is not configured; configure it again to let the host in"
        raise Precondition(told)
    return world.pools.get(found.pool)


def _lift(commit: Commit, *, known: list[Fence]) -> None:
    """Prove nothing any more, in no pool: two pools may be of one storage, which lets a host in with the first of them."""
    for found in known:
        fences.put(commit, replace(found, proven=False, at=time.time()))


def _only(world: World, found: Fence) -> tuple[str, ...]:
    """The addresses that no other host's fence needs, in whichever pool: two may be of one storage."""
    with world.database.read() as connection:
        others = fences.addresses(connection, but=found.host)
    return tuple(address for address in found.addresses if address not in others)
