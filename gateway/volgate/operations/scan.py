"""Keeps the index true: compares it with what the storages hold, and the attachments with what the hosts have."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import structlog

from volgate.backend import Snapshots
from volgate.errors import NotFound, VolgateError
from volgate.model import Snapshot, Volume
from volgate.names import VolumeName
from volgate.operations import lookups, publishing, requests
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, index, journal
from volgate.store.database import Commit
from volgate.store.records import AttachmentRecord, AttachmentState

__all__ = ["Merges", "reconcile_attachments", "scan_pool"]

_log = structlog.get_logger()
_FOLLOWED = ("DetachVolume", "DeleteSnapshot", "RevertVolume")  # what leaves layers that nobody needs
_MARGIN_SECONDS = 60.0  # between the end of an operation and its commit


def scan_pool(world: World, pool: Pool, runner: Runner) -> int:
    """Read the whole pool and bring its rows up to date; return how many changed. Objects with an operation are left to it."""
    began = time.time()
    found = pool.call(_listed, pool)
    with world.database.read() as connection:
        known = index.pool_rows(connection, pool.name)
    differing = [volume.name for volume, snapshots in found if _differs(known.pop(volume.name, None), volume, snapshots)]
    written = [done for name in (*differing, *known) if (done := _bring_up_to_date(world, pool, name, runner))]
    for done in written:
        done.result()
    world.database.write(partial(index.observed, pool=pool.name, at=began))
    try:
        publishing.shut_out_released(world, pool, [lookups.identity(volume) for volume, _ in found], runner.hold_if_free)
    except VolgateError as error:
        _log.warning("a released host is not shut out yet", pool=pool.name, error=error.message)
    return len(written)


def _differs(row: index.Row | None, volume: Volume, snapshots: list[Snapshot]) -> bool:
    """Whether a row has to be written; the snapshots of a volume with a problem cannot be read, their rows stay."""
    seen = index.row_of(volume, snapshots)
    return row is None or (row[0] != seen[0] if volume.problem else row != seen)


def _listed(pool: Pool) -> list[tuple[Volume, list[Snapshot]]]:
    return [(volume, _snapshots(pool, volume)) for volume in pool.backend().list_volumes()]


def _snapshots(pool: Pool, volume: Volume) -> list[Snapshot]:
    """The snapshots of a volume that can tell them."""
    backend = pool.backend()
    if not isinstance(backend, Snapshots) or volume.problem:
        return []
    try:
        return list(backend.list_snapshots(lookups.identity(volume)))
    except NotFound:  # deleted since it was listed
        return []


def _bring_up_to_date(world: World, pool: Pool, name: str, runner: Runner) -> Future[None] | None:
    """Read one volume again under its lock, for the listing may be older than its row; None if an operation has it.

    The row is written with others in one commit. It is queued under the lock, so that an operation's own row comes after it.
    """
    release = runner.hold_if_free(str(VolumeName(pool.name, name)))
    if release is None:
        return None
    try:
        volume = lookups.find_volume(pool, name)
        if volume is None:
            return world.database.submit(partial(index.forget_volume, pool=pool.name, name=name))
        snapshots = pool.call(_snapshots, pool, volume)
        return world.database.submit(partial(_write, pool=pool.name, volume=volume, snapshots=snapshots, now=time.time()))
    finally:
        release()


def _write(commit: Commit, *, pool: str, volume: Volume, snapshots: list[Snapshot], now: float) -> None:
    index.put_volume(commit, pool, volume, now)
    if not volume.problem:
        index.replace_snapshots(commit, pool, volume.name, snapshots, now)


class Merges:
    """Begins the merges of layers that should have followed an operation and did not: the gateway died, stopped or was too busy."""

    def __init__(self, world: World, runner: Runner) -> None:
        """Nothing is looked at yet."""
        self._world = world
        self._runner = runner
        self._since = 0.0
        self._missing: set[str] = set()

    def resume(self) -> int:
        """Begin what is missing, the first time of all that the journal has; return how many. Those of a pool that is down wait.

        Raises Busy, Unreachable (stopping): the rest waits too.
        """
        now = time.time()
        with self._world.database.read() as connection:
            self._missing |= journal.unfollowed(connection, _FOLLOWED, requests.CollapseLayers.method, self._since)
            names = [VolumeName.parse(target) for target in sorted(self._missing) if target.startswith("pools/")]
            rows = {name: index.find_volume(connection, name.pool, name.volume) for name in names}
        self._since = now - _MARGIN_SECONDS
        merged = {name: row for name, row in rows.items() if row and row.volume.depth and not row.attachments}
        down = {pool.name for pool in self._world.pools if pool.untouched}
        self._missing = {str(name) for name in merged}
        for name, row in merged.items():
            if name.pool not in down:
                self._runner.submit(requests.CollapseLayers(name, row.volume.uid), requests.Caller(principal="gateway"))
                self._missing.discard(str(name))
        return len(merged) - len(self._missing)


def reconcile_attachments(world: World, runner: Runner, told: Mapping[str, str] = MappingProxyType({})) -> list[AttachmentRecord]:
    """Compare every attachment with its host: mark those that the domain has lost, clear the mark of those that are back.

    `told` is what else is wrong with some of them, by id.
    """
    with world.database.read() as connection:
        records = attachments.page(connection, limit=100_000)
    changed, away = [], set[str]()
    for record in records:
        if record.state not in (AttachmentState.ATTACHED, AttachmentState.LOST) or record.host not in world.hosts:
            continue
        target = str(VolumeName(record.pool, record.volume))
        if not runner.order.is_free(target):
            continue  # its operation looks for itself, and would wait for QEMU's monitor until this look is over
        if record.host in away:
            continue
        try:
            now = _observe(world, record, told.get(record.id, ""))
        except VolgateError as error:
            _log.info("attachment cannot be observed", attachment=record.id, error=error.message)
            away |= {record.host} if error.reason == "HOST_DOWN" else set()  # who waited for it once waits no second time
            continue
        if now == record or (release := runner.hold_if_free(target)) is None:
            continue
        try:
            if world.database.write(partial(attachments.replace, old=record, new=now)):
                changed.append(now)
        finally:
            release()
    return changed


def _observe(world: World, record: AttachmentRecord, told: str) -> AttachmentRecord:
    timeout = world.settings.limits.libvirt_timeout
    seen = world.host(record.host)[1].presence(record.domain, record.alias, record.source, timeout=timeout)
    if seen.live or seen.config:
        return replace(record, state=AttachmentState.ATTACHED, live=seen.live, config=seen.config, problem=told)
    problem = "the domain does not exist any more" if not seen.domain_exists else "the domain does not have the disk any more"
    if seen.qemu:
        problem = "QEMU has the disk but libvirt does not list it; a repeat of AttachVolume or DetachVolume repairs it"
    return replace(record, state=AttachmentState.LOST, live=False, config=False, problem=problem)
