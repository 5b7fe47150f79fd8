"""Keys that guests need at their next start: libvirt forgets them when it starts anew, and operators change them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import structlog

from volgate.backend import VolumeId
from volgate.errors import Precondition, VolgateError
from volgate.operations import transports
from volgate.operations.fleet import Station
from volgate.operations.sweep import Sweep
from volgate.operations.world import World
from volgate.store import attachments
from volgate.store.records import AttachmentRecord, AttachmentState

__all__ = ["Keys"]

_log = structlog.get_logger()
_EVERY_SECONDS = 60.0
_AGAIN_SECONDS = 10.0  # after a host or a storage that did not answer
_AFTER_SECONDS = 1200.0  # a host keeps for a while what it was asked to prepare
_LOOK_SECONDS = 10.0
_HOSTS_AT_ONCE = 32
_MOST_RECORDS = 100_000


class Keys:
    """Gives the hosts with attachments the keys of now, each minute and whenever a libvirt was connected. One thread runs.

    A host then removes what nothing needs: an attachment that was prepared is gone, or its disk was detached while its key was given.
    """

    def __init__(self, world: World) -> None:
        """Nothing was given yet."""
        self._world = world
        self._due = threading.Event()
        self._next: dict[str, float] = {}  # by host, monotonic
        self._until: dict[str, float] = {}  # the same: when a host without attachments has nothing left, surely
        self._sweep: Sweep[Station, bool] = Sweep("keys", _HOSTS_AT_ONCE)

    def hurry(self) -> None:
        """A libvirt may have forgotten keys: give them in the next round. Any thread."""
        self._due.set()

    def renew(self) -> None:
        """Make a round with the hosts whose time has come. Raises VolgateError."""
        if self._due.is_set():
            self._due.clear()
            self._next.clear()
        now = time.monotonic()
        stations = [station for station in self._world.hosts.stations() if now >= self._next.get(station.name, 0.0)]
        if not stations:
            return
        with self._world.database.read() as connection:
            records = [one for one in attachments.page(connection, limit=_MOST_RECORDS) if _secret_of(one)]
        wanted: dict[str, list[AttachmentRecord]] = defaultdict(list)
        for record in records:
            wanted[record.host].append(record)
        visited = [one for one in stations if one.name in wanted or now < self._until.setdefault(one.name, now + _AFTER_SECONDS)]
        self._until |= dict.fromkeys(wanted, now + _AFTER_SECONDS)
        ended = self._sweep.run(visited, lambda station: self._settle(station, wanted.get(station.name, [])), _LOOK_SECONDS)
        for station in stations:
            self._next[station.name] = now + (_EVERY_SECONDS if ended.get(station.name, station not in visited) else _AGAIN_SECONDS)

    def close(self) -> None:
        """Begin nothing more."""
        self._sweep.close()

    def _settle(self, station: Station, records: list[AttachmentRecord]) -> bool:
        """False if a key was not given, or may have been left."""
        given = self._give(station, list({_secret_of(record): record for record in records}.values()))
        try:
            station.host.sweep_secrets([one.xml for one in records if one.state is AttachmentState.PREPARED], timeout=_LOOK_SECONDS)
        except Precondition as error:  # an older one does so at its next detach
            _log.debug("a host does not tell apart which keys it needs", host=station.name, error=error.message)
        except VolgateError as error:
            _log.info("keys that nothing needs may be left on a host", host=station.name, error=error.message)
            return False
        return given

    def _give(self, station: Station, records: list[AttachmentRecord]) -> bool:
        timeout, given = min(_LOOK_SECONDS, self._world.settings.limits.libvirt_timeout), True
        for record in records:
            try:
                if record.options.passphrase:
                    station.host.renew_passphrase(record.options.passphrase, timeout=timeout)
                    continue
                pool = self._world.pools.get(record.pool)
                pool.require_served()
                found = pool.call(pool.backend().connection, VolumeId(record.volume, record.volume_uid), host=record.host)
                connection = transports.by(found, record.options.transport)
                station.host.renew_key(connection, timeout=timeout)
            except VolgateError as error:
                _log.warning("a key is not renewed", host=station.name, pool=record.pool, error=error.message)
                given = False
        return given


def _secret_of(record: AttachmentRecord) -> str:
    """What two volumes have in common that are opened by one secret: the pool, and for CHAP the target; "" for what needs none."""
    if record.options.passphrase:
        return f"passphrase {record.options.passphrase}"
    if not record.source.startswith(("rbd:", "iscsi:")):
        return ""
    return f"{record.pool} {record.source.rpartition('/')[0] if record.source.startswith('iscsi:') else ''}"
