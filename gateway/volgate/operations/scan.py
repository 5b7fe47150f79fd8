"""Keeps the index true: compares it with what the storages hold, and the attachments with what the hosts have."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import msgspec
import structlog

from volgate.backend import Snapshots
from volgate.errors import VolgateError
from volgate.model import Snapshot, Volume
from volgate.names import VolumeName
from volgate.operations import lookups
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, index
from volgate.store.database import Commit
from volgate.store.records import AttachmentRecord, AttachmentState

__all__ = ["reconcile_attachments", "scan_pool"]

_log = structlog.get_logger()


def scan_pool(world: World, pool: Pool, runner: Runner | None) -> int:
    """Read the whole pool and bring its rows up to date; return how many rows changed. Objects with an operation are left to it."""
    began = time.time()
    found = pool.call(_listed, pool)
    with world.database.read() as connection:
        known = index.volume_uids(connection, pool.name)
    changed = 0
    for volume, snapshots in found:
        row = known.pop(volume.name, None)
        if _busy(runner, pool, volume.name):
            continue
        fresh = row is None or row[1] != msgspec.json.encode(volume)
        changed += fresh
        if fresh or snapshots is not None:
            world.database.write(partial(_write, pool=pool.name, volume=volume, snapshots=snapshots, now=began))
    for name in known:
        if not _busy(runner, pool, name) and lookups.find_volume(pool, name) is None:
            changed += 1
            world.database.write(partial(index.forget_volume, pool=pool.name, name=name))
    return changed


def _listed(pool: Pool) -> list[tuple[Volume, list[Snapshot] | None]]:
    backend = pool.backend()
    rows: list[tuple[Volume, list[Snapshot] | None]] = []
    for volume in backend.list_volumes():
        snapshots: list[Snapshot] | None = None
        if isinstance(backend, Snapshots) and volume.problem == "":
            snapshots = list(backend.list_snapshots(lookups.identity(volume)))
        rows.append((volume, snapshots))
    return rows


def _write(commit: Commit, *, pool: str, volume: Volume, snapshots: list[Snapshot] | None, now: float) -> None:
    index.put_volume(commit, pool, volume, now)
    if snapshots is not None:
        index.replace_snapshots(commit, pool, volume.name, snapshots, now)


def _busy(runner: Runner | None, pool: Pool, name: str) -> bool:
    return runner is not None and runner.busy(str(VolumeName(pool.name, name)))


def reconcile_attachments(world: World, runner: Runner | None) -> list[AttachmentRecord]:
    """Compare every attachment with its host: mark those that the domain has lost, clear the mark of those that are back."""
    with world.database.read() as connection:
        records = attachments.page(connection, limit=100_000)
    changed = []
    for record in records:
        if record.state not in (AttachmentState.ATTACHED, AttachmentState.LOST) or record.host not in world.hosts:
            continue
        if runner is not None and runner.busy(str(VolumeName(record.pool, record.volume))):
            continue
        now = _observe(world, record)
        if now != record:
            world.database.write(partial(attachments.put, record=now))
            changed.append(now)
    return changed


def _observe(world: World, record: AttachmentRecord) -> AttachmentRecord:
    host = world.hosts[record.host]
    try:
        seen = host.presence(record.domain, record.alias, record.source, timeout=world.settings.limits.libvirt_timeout)
    except VolgateError as error:
        _log.info("attachment cannot be observed", attachment=record.id, error=error.message)
        return record
    if seen.live or seen.config:
        return replace(record, state=AttachmentState.ATTACHED, live=seen.live, config=seen.config, problem="")
    problem = "the domain does not exist any more" if not seen.domain_exists else "the domain does not have the disk any more"
    if seen.qemu:
        problem = "QEMU has the disk but libvirt does not list it; a repeat of AttachVolume or DetachVolume repairs it"
    return replace(record, state=AttachmentState.LOST, live=False, config=False, problem=problem)
