"""Use cases of attachments: hand a volume to a domain, take it back."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import structlog

from volgate.connection import is_connected
from volgate.errors import AlreadyExists, Cancelled, InDoubt, InUse, Precondition
from volgate.hosts.interface import AttachPlan, DetachOutcome, Domain, Host
from volgate.model import Access, DiskOptions, Format, Volume
from volgate.names import attachment_id
from volgate.operations import encryption, holders, lookups, publishing, requests, transports
from volgate.operations.context import Context, Parked
from volgate.operations.disconnect import disconnect, is_disconnected
from volgate.operations.fleet import refuse_fenced, refuse_released
from volgate.operations.requests import Plan
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments
from volgate.store.records import AttachmentRecord, AttachmentState

_log = structlog.get_logger()
__all__ = ["Attached", "attach_volume", "detach_volume", "plan_attach"]

_ASK_SECONDS = 2.0
_LOOK_SECONDS = 0.2
_PARKED_SECONDS = 2.0  # between two looks; a host's event comes sooner


@dataclass(frozen=True, slots=True)
class Attached:
    """The answer of an attach; `disk_xml` is set for prepare_only."""

    attachment: AttachmentRecord
    disk_xml: str = ""


def attach_volume(ctx: Context, request: requests.AttachVolume) -> Attached:
    """Say how the volume is reached, let the host prove and attach it, record what undoes it."""
    timeout = ctx.world.settings.limits.libvirt_timeout
    pool = ctx.world.pools.get(request.volume.pool)
    volume = lookups.require_volume(pool, request.volume, request.volume_uid)
    host_name, host = ctx.world.host(request.host)
    domain = host.find_domain(request.domain, timeout=timeout)
    identifier = attachment_id(volume.uid, host_name, domain.uuid)
    alias = f"ua-vg-{identifier[:8]}-{ctx.nonce}"

    def take_back(source: str) -> None:
        """Undo an attach, also one that an earlier attempt began."""
        _take_back(host, domain.uuid, alias, source, timeout)
        disconnect(ctx.world, host_name, str(ctx.facts.get("source", "")), identifier)

    publishing.undo_opening(ctx, pool, lookups.identity(volume), host_name, identifier)
    ctx.undo_earlier("attach", lambda: take_back(""))
    options = _options(ctx.world, request.options, volume)
    mine, others, died = _known(ctx, pool, volume, identifier)
    if mine is not None and (standing := _standing(mine, host, options, prepared=request.prepare_only, timeout=timeout)):
        return standing
    _require_usable(ctx.world, host_name)
    _refuse_second_writer(volume, options, others)
    ctx.uid = volume.uid
    ctx.commit(lambda commit: refuse_released(commit, host_name))
    identity = lookups.identity(volume)
    publishing.open_to(ctx, pool, identity, host_name, host, identifier)
    with ctx.step("connection"):
        found = pool.call(pool.backend().connection, identity, host=host_name)
        connection = transports.by(found, options.transport)
    encryption.require(ctx.world, host_name, connection, options)
    if is_connected(connection.source):
        ctx.note(source=connection.source)  # what an attempt that dies on the way has connected is found again by it
    before, seen = holders.openers(others), holders.clients(pool, identity)
    again = ctx.resumed and seen and host.presence(domain.uuid, alias, connection.source, timeout=timeout).qemu
    holders.refuse_strangers(ctx, seen, volume.name, before + bool(again), died=died)
    plan = AttachPlan(identifier, alias, domain.uuid, connection, options, str(request.volume))
    record = _record(plan, pool, volume, host_name, domain)
    if request.prepare_only:
        with ctx.step("prepare", undo=lambda: take_back("")):
            xml = host.prepare(replace(plan, beside=_prepared_beside(ctx, record)), timeout=timeout)
        record = replace(record, state=AttachmentState.PREPARED, xml=xml)
        ctx.commit(lambda commit: attachments.put(commit, record))
        return Attached(record, xml)
    with ctx.step("attach", undo=lambda: take_back(connection.source)):
        disk = host.attach(plan, timeout=timeout)
        if disk.live:
            holders.require_opened(pool, identity, before)
    done = replace(
        record,
        target=disk.target,
        address=disk.address,
        live=disk.live,
        config=disk.config,
        xml=disk.xml,
        boot_id=disk.boot_id,
        source=disk.source,
    )
    ctx.commit(lambda commit: attachments.put(commit, done))
    return Attached(done)


def _require_usable(world: World, host: str) -> None:
    with world.database.read() as connection:
        refuse_fenced(connection, host)
    world.hosts.require_usable(host)


def _take_back(host: Host, domain: str, alias: str, source: str, timeout: float) -> None:
    """Undo an attach. Raises InDoubt while the guest holds the disk: the volume must stay locked until then."""
    if host.detach(domain, alias, source, timeout=timeout) is DetachOutcome.PENDING:
        raise InDoubt(f"the guest of domain {domain} has not released {alias}; its removal is tried again")


def _prepared_beside(ctx: Context, record: AttachmentRecord) -> tuple[str, ...]:
    """The other disks prepared for the same domain: it may not have them yet, but their places are taken."""
    with ctx.world.database.read() as connection:
        records = attachments.of_domain(connection, record.host, record.domain)
    return tuple(one.xml for one in records if one.state is AttachmentState.PREPARED and one.id != record.id)


def _options(world: World, options: DiskOptions, volume: Volume) -> DiskOptions:
    """Complete the options: a serial from the uid that every bus shows whole. Raises Precondition for a shared qcow2, Denied."""
    encryption.refuse_unlisted(world, options)
    if options.access is Access.SHARED and volume.format is not Format.RAW:
        raise Precondition(f"access: {volume.name} is {volume.format}; only a raw volume can be shared by writers", field="options.access")
    return options if options.serial else replace(options, serial=f"vg-{volume.uid.replace('-', '')[:17]}")


def _known(ctx: Context, pool: Pool, volume: Volume, identifier: str) -> tuple[AttachmentRecord | None, list[AttachmentRecord], bool]:
    """The record of this attachment, if any, those of others that still hold the volume, and whether one lost it without a detach."""
    records = lookups.attachments_of(ctx.world, pool.name, volume)
    mine = next((record for record in records if record.id == identifier), None)
    others = [record for record in records if record.id != identifier and not lookups.released(ctx, record)]
    return mine, others, len(records) > len(others)


def _standing(record: AttachmentRecord, host: Host, options: DiskOptions, *, prepared: bool, timeout: float) -> Attached | None:
    """The answer for an attachment that stands already; None if the domain has lost it and it is to be made anew."""
    if record.state is AttachmentState.DETACHING:
        raise Precondition(f"attachments/{record.id} is being detached; wait until the guest has released it")
    if record.options != options or (record.state is AttachmentState.PREPARED) != prepared:
        differing = [
            f"{name} is {getattr(record.options, name)!s}, asked {getattr(options, name)!s}"
            for name in DiskOptions.__dataclass_fields__
            if getattr(record.options, name) != getattr(options, name)
        ] or ["prepare_only"]
        raise AlreadyExists(f"attachments/{record.id} exists and differs: {'; '.join(differing)}")
    if record.state is AttachmentState.PREPARED:
        return Attached(record, record.xml)
    seen = host.presence(record.domain, record.alias, record.source, timeout=timeout)
    return Attached(record) if (seen.live or (seen.config and not seen.active)) else None


def _refuse_second_writer(volume: Volume, options: DiskOptions, others: list[AttachmentRecord]) -> None:
    """Raise InUse unless this attachment and all others share the volume or only read it."""
    if not others:
        return
    access = {record.options.access for record in others} | {options.access}
    if access not in ({Access.SHARED}, {Access.READ_ONLY}):
        names = ", ".join(f"{record.domain_name} on hosts/{record.host}" for record in others)
        told = f"{volume.name} is attached to {names}; detach it there first, or, if that host is lost, fence it (FenceHost) or release it"
        raise InUse(told, holders=lookups.holders(others))


def _record(plan: AttachPlan, pool: Pool, volume: Volume, host: str, domain: Domain) -> AttachmentRecord:
    return AttachmentRecord(
        id=plan.attachment,
        pool=pool.name,
        volume=volume.name,
        volume_uid=volume.uid,
        host=host,
        domain=domain.uuid,
        domain_name=domain.name,
        state=AttachmentState.ATTACHED,
        options=plan.options,
        alias=plan.alias,
        source=plan.connection.source,
        created_at=time.time(),
    )


def detach_volume(ctx: Context, request: requests.DetachVolume) -> None:
    """Take the disk away by the record; answered only when the guest has let go. Until then the caller is told PENDING."""
    with ctx.world.database.read() as connection:
        record = attachments.find(connection, request.attachment)
    if record is None:
        return
    ctx.uid = record.volume_uid
    _, host = ctx.world.host(record.host)
    if record.state is not AttachmentState.PREPARED:
        try:
            with ctx.step("detach"):
                _release(ctx, host, record, float(request.wait_seconds))
        except Cancelled:
            held = replace(record, state=AttachmentState.ATTACHED)
            ctx.write(lambda commit: attachments.put(commit, held))
            raise
    else:
        with ctx.step("disconnect"):
            disconnect(ctx.world, record.host, record.source, record.id)
    with ctx.step("unpublish"):
        publishing.close(ctx.world, record)
    ctx.commit(lambda commit: attachments.forget(commit, record.id))


def _release(ctx: Context, host: Host, record: AttachmentRecord, wait: float) -> None:
    """Ask the guest to let go, for a short while; then park, so that a deaf guest keeps no thread. Tell callers after `wait` seconds."""
    ask = min(_ASK_SECONDS, max(_LOOK_SECONDS, wait - ctx.waited()))
    if host.detach(record.domain, record.alias, record.source, timeout=ask) is DetachOutcome.GONE and _let_go(ctx, record):
        return
    left = wait - ctx.waited()
    if left <= 0:
        leaving = replace(record, state=AttachmentState.DETACHING)
        if record != leaving:
            ctx.write(lambda commit: attachments.put(commit, leaving))
        ctx.on_pending(leaving)
    raise Parked(min(left, _PARKED_SECONDS) if left > 0 else _PARKED_SECONDS)


def _let_go(ctx: Context, record: AttachmentRecord) -> bool:
    """Whether the storage, too, says that the guest has let go; who still has the volume open after a while is somebody else.

    Then the host lets go as well: of its devices last.
    """
    who = holders.left_open(ctx.world, record)
    if not who:
        return is_disconnected(ctx.world, record.host, record.source, record.id)
    gone = float(ctx.facts.get("gone", 0.0))
    if not gone:
        ctx.note(gone=time.time())
        return False
    if time.time() - gone < holders.LINGER_SECONDS:
        return False
    _log.warning("the guest has let go of a volume that others have open", attachment=record.id, volume=record.volume, holders=who)
    return is_disconnected(ctx.world, record.host, record.source, record.id)


def plan_attach(world: World, request: requests.AttachVolume) -> Plan:
    """What an attach would do, and who blocks it."""
    timeout = world.settings.limits.libvirt_timeout
    pool = world.pools.get(request.volume.pool)
    volume = lookups.require_volume(pool, request.volume, request.volume_uid)
    host_name, host = world.host(request.host)
    domain = host.find_domain(request.domain, timeout=timeout)
    _options(world, request.options, volume)
    identifier = attachment_id(volume.uid, host_name, domain.uuid)
    records = lookups.attachments_of(world, pool.name, volume)
    if any(record.id == identifier for record in records):
        return Plan(("return the existing attachment",))
    _require_usable(world, host_name)
    steps = ("connection", "prepare") if request.prepare_only else ("connection", "attach")
    return Plan(steps, 0, tuple(f"attachments/{record.id}" for record in records))
