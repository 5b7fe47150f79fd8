"""Limits of the disks that a volume is at this moment."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from volgate.errors import Precondition
from volgate.model import Qos, Volume
from volgate.operations import lookups
from volgate.operations.context import Context
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments
from volgate.store.records import AttachmentRecord, AttachmentState

__all__ = ["limit", "limited"]


def limited(world: World, pool: Pool, volume: Volume) -> list[AttachmentRecord]:
    """The attachments whose limits can be changed. Raises Precondition (NOT_ATTACHED) if there is none."""
    found = [record for record in lookups.attachments_of(world, pool.name, volume) if record.state is AttachmentState.ATTACHED]
    if not found:
        raise Precondition(
            f"qos: {volume.name} is attached to no domain; give the limits with AttachVolume", reason="NOT_ATTACHED", field="qos"
        )
    return found


def limit(ctx: Context, pool: Pool, volume: Volume, qos: Qos) -> None:
    """Set the limits of every attachment; a failure on the way sets those before it back."""
    timeout = ctx.world.settings.limits.libvirt_timeout
    for record in limited(ctx.world, pool, volume):
        _, host = ctx.world.host(record.host)
        back = partial(host.limit, record.domain, record.alias, record.qos, timeout=timeout)
        with ctx.step(f"limit {record.domain_name}", undo=back):
            host.limit(record.domain, record.alias, qos, timeout=timeout)
        ctx.commit(partial(attachments.put, record=replace(record, limits=qos)))
