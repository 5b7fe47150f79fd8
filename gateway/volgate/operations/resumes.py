"""Guests that an I/O error stopped run again once the way to their disks is healthy, where their attachments say so."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from volgate.backend import VolumeId
from volgate.errors import VolgateError
from volgate.hosts.interface import Halt
from volgate.lanes import Lane
from volgate.model import ErrorPolicy
from volgate.operations import transports, ways
from volgate.operations.fleet import Station
from volgate.operations.sweep import Sweep
from volgate.operations.world import World
from volgate.store import attachments
from volgate.store.records import AttachmentRecord

__all__ = ["Resumes"]

_log = structlog.get_logger()
_LOOK_SECONDS = 10.0  # a storage or a libvirt that hangs is looked at again at the next check
_HOSTS_AT_ONCE = 32
_MOST_RECORDS = 100_000
_FIRST, _MOST = 5.0, 60.0  # seconds between a resume and the next one of a guest that stops again: doubled up to this
_CALM_SECONDS = 300.0  # a guest that ran for so long starts anew
_STOPPED = "the guest is stopped by an I/O error of this disk"


@dataclass(frozen=True, slots=True)
class _Try:
    at: float
    pause: float


class Resumes:
    """Used by one thread."""

    def __init__(self, world: World) -> None:
        """Nothing was resumed yet."""
        self._world = world
        self._lane = Lane("resume", 8, 256)
        self._looks: Sweep[Station, list[Halt]] = Sweep("halts", _HOSTS_AT_ONCE)
        self._tries: dict[tuple[str, str], _Try] = {}

    def look(self) -> dict[str, str]:
        """Resume what can be; return what is to be said of the attachments, by id, whose guests stay stopped. Raises VolgateError.

        Hosts without an attachment are not asked, and one that does not answer keeps no other waiting.
        """
        with self._world.database.read() as connection:
            holding = {record.host for record in attachments.page(connection, limit=_MOST_RECORDS)}
        stations = [station for station in self._world.hosts.stations() if station.name in holding]
        told: dict[str, str] = {}
        for name, halts in self._looks.run(stations, self._halted, _LOOK_SECONDS).items():
            for halt in halts:
                told |= self._consider(name, halt)
        now = time.monotonic()
        self._tries = {key: one for key, one in self._tries.items() if now - one.at < _CALM_SECONDS}
        return told

    def close(self) -> None:
        """Begin nothing more."""
        self._lane.close()
        self._looks.close()

    def _halted(self, station: Station) -> list[Halt]:
        try:
            return list(station.host.halted(timeout=min(_LOOK_SECONDS, self._world.settings.limits.libvirt_timeout)))
        except VolgateError as error:
            _log.info("stopped guests cannot be looked for", host=station.name, error=error.message)
            return []

    def _consider(self, host: str, halt: Halt) -> dict[str, str]:
        with self._world.database.read() as connection:
            known = {record.alias: record for record in attachments.of_domain(connection, host, halt.domain)}
        failed = [known[alias] for alias in halt.disks if alias in known]
        if len(failed) < len(halt.disks) or any(record.options.error_policy is not ErrorPolicy.RESUME for record in failed):
            return {record.id: f"{_STOPPED}; mend what it is, and resume the domain ({self._waits_for(halt, failed)})" for record in failed}
        if not failed:
            return {}
        last = self._tries.get((host, halt.domain))
        if last and time.monotonic() < last.at + last.pause:
            return {record.id: f"{_STOPPED} again; it is resumed again soon" for record in failed}
        for record in failed:
            if problem := self._problem(record):
                return {one.id: f"{_STOPPED}; it is resumed when this is mended: {problem}" for one in failed}
        self._resume(host, halt, last)
        return {}

    @staticmethod
    def _waits_for(halt: Halt, failed: list[AttachmentRecord]) -> str:
        """Why nobody resumes it."""
        ours = {record.alias: record.options.error_policy for record in failed}
        kept = [f"{alias} has the policy {ours.get(alias, 'of somebody else')}" for alias in halt.disks]
        return ", ".join(kept)

    def _problem(self, record: AttachmentRecord) -> str:
        """What is wrong on the way to a disk, "" for nothing. Bounded, though the storage may hang."""
        try:
            return self._lane.call_within(_LOOK_SECONDS, self._way, record)
        except VolgateError as error:
            return error.message

    def _way(self, record: AttachmentRecord) -> str:
        pool = self._world.pools.get(record.pool)
        pool.require_served()
        of, timeout = VolumeId(record.volume, record.volume_uid), self._world.settings.limits.libvirt_timeout
        connection = transports.by(pool.call(pool.backend().connection, of, host=record.host), record.options.transport)
        paths = self._world.host(record.host)[1].file_paths(connection, timeout=timeout)
        return ways.blocked(paths)

    def _resume(self, host: str, halt: Halt, last: _Try | None) -> None:
        try:
            again = self._world.host(host)[1].resume(halt.domain, timeout=self._world.settings.limits.libvirt_timeout)
        except VolgateError as error:
            _log.warning("a stopped guest cannot be resumed", host=host, domain=halt.name, error=error.message)
            again = True
        else:
            _log.warning("guest resumed after an I/O error", host=host, domain=halt.name, disks=halt.disks)
        if again:
            self._tries[host, halt.domain] = _Try(time.monotonic(), min(_MOST, last.pause * 2) if last else _FIRST)
