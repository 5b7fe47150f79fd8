"""Who has a volume open, by the word of its storage: nobody else before an attach, the guest after it, nobody after the last detach."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from volgate.backend import VolumeId
from volgate.backend.facets import Holder, Holders
from volgate.errors import Holder as Blocker
from volgate.errors import InUse, NotFound, Precondition, VolgateError
from volgate.operations.context import Context, Parked
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments
from volgate.store.records import AttachmentRecord, AttachmentState

__all__ = ["LINGER_SECONDS", "clients", "left_open", "openers", "refuse_strangers", "require_opened"]

LINGER_SECONDS = 45.0
"""A storage forgets a client that died within this time: Ceph after 30 seconds without a sign of life."""

_log = structlog.get_logger()
_SETTLE_SECONDS = 5.0
_LET_GO_SECONDS = 1.0
_TICK = 0.05
_PARKED_SECONDS = 2.0


def clients(pool: Pool, volume: VolumeId) -> Sequence[Holder] | None:
    """Who has the volume open, None where the storage does not know."""
    backend = pool.backend()
    return pool.call(backend.holders, volume) if isinstance(backend, Holders) else None


def refuse_strangers(ctx: Context, found: Sequence[Holder] | None, name: str, explained: int, *, died: bool) -> None:
    """Raise InUse if more clients have the volume open than attachments explain.

    `died`: one of ours may have ended without a word, so that it is waited for until the storage forgets it.
    """
    if found is None or len(found) <= explained:
        return
    if died and ctx.waited() < LINGER_SECONDS:
        raise Parked(_PARKED_SECONDS)
    raise InUse(
        f"{name} is open on its storage by {_named(found)}, which is no attachment of this gateway; end it there. "
        f"A client that died is forgotten within {LINGER_SECONDS:.0f} s: repeat the call then",
        reason="HELD_ON_STORAGE",
        holders=tuple(Blocker("client", one.client, one.address) for one in found),
    )


def require_opened(pool: Pool, volume: VolumeId, before: int) -> None:
    """Prove by the storage that the guest's QEMU has the volume open, and no other one. Raises Precondition, and the attach is undone."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (found := clients(pool, volume)) is not None and len(found) <= before:
        if time.monotonic() > deadline:
            raise Precondition(
                f"{volume.name}: QEMU says that it has the disk, the storage knows of no new client; what it opened is taken away again",
                reason="IDENTITY_MISMATCH",
            )
        time.sleep(_TICK)


def left_open(world: World, record: AttachmentRecord) -> str:
    """Who still has a volume open beyond its other attachments, after a guest let go of it; "" for nobody.

    A storage that does not answer is somebody; a pool that is served no more is nobody.
    """
    deadline = time.monotonic() + _LET_GO_SECONDS
    with world.database.read() as connection:
        others = [one for one in attachments.of_volume(connection, record.pool, record.volume) if one.id != record.id]
    try:
        pool = world.pools.get(record.pool)
        if pool.quarantine or pool.unserved:
            return ""
        while (found := clients(pool, VolumeId(record.volume, record.volume_uid))) and len(found) > openers(others):
            if time.monotonic() > deadline:
                return _named(found)
            time.sleep(_TICK)
    except NotFound:
        return ""
    except VolgateError as error:
        _log.info("the storage cannot tell who has a volume open", attachment=record.id, error=error.message)
        return error.message
    return ""


def openers(records: Sequence[AttachmentRecord]) -> int:
    """How many clients these attachments are: a QEMU that only reads is one too."""
    return sum(one.live and one.state is not AttachmentState.PREPARED for one in records)


def _named(found: Sequence[Holder]) -> str:
    return ", ".join(f"{one.client} at {one.address}{' (with the lock)' if one.locks else ''}" for one in found)
