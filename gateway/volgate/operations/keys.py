"""Keys that guests need at their next start: libvirt forgets them when it starts anew, and operators change them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import structlog

from volgate.backend import VolumeId
from volgate.errors import VolgateError
from volgate.hosts.interface import DetachOutcome, Host
from volgate.operations import transports
from volgate.operations.fleet import Station
from volgate.operations.sweep import Sweep
from volgate.operations.world import World
from volgate.store import attachments
from volgate.store.records import AttachmentRecord

__all__ = ["Keys"]

_log = structlog.get_logger()
_EVERY_SECONDS = 60.0
_AGAIN_SECONDS = 10.0  # after a host or a storage that did not answer
_LOOK_SECONDS = 10.0
_HOSTS_AT_ONCE = 32
_MOST_RECORDS = 100_000


class Keys:
    """Gives the hosts with attachments the keys of now, each minute and whenever a libvirt was connected. One thread runs.

    A disk may be detached while its key is given: a host lets go of what it was given once no attachment needs it.
    """

    def __init__(self, world: World) -> None:
        """Nothing was given yet."""
        self._world = world
        self._due = threading.Event()
        self._next: dict[str, float] = {}  # by host, monotonic
        self._given: dict[str, dict[str, AttachmentRecord]] = defaultdict(dict)  # by host and secret: for which attachment
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
        wanted: dict[str, dict[str, AttachmentRecord]] = defaultdict(dict)
        for record in records:
            wanted[record.host].setdefault(_secret_of(record), record)
        ended = self._sweep.run(
            [station for station in stations if station.name in wanted or self._given.get(station.name)],
            lambda station: self._settle(station, wanted.get(station.name, {})),
            _LOOK_SECONDS,
        )
        for station in stations:
            self._next[station.name] = now + (_EVERY_SECONDS if ended.get(station.name, station.name not in wanted) else _AGAIN_SECONDS)

    def close(self) -> None:
        """Begin nothing more."""
        self._sweep.close()

    def _settle(self, station: Station, wanted: dict[str, AttachmentRecord]) -> bool:
        """False if a key was not given, or may have been left behind."""
        known = self._given[station.name]
        idle = {secret: record for secret, record in known.items() if secret not in wanted}
        known.update(wanted)
        settled = self._give(station, list(wanted.values()))
        for secret, record in idle.items():
            try:
                if _took_back(station.host, record):
                    del known[secret]
            except VolgateError as error:
                _log.warning("a key may be left on a host that needs it no more", host=station.name, pool=record.pool, error=error.message)
                settled = False
        return settled

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


def _took_back(host: Host, record: AttachmentRecord) -> bool:
    """Repeat the detach of a disk that is gone, which removes its secret; False while the domain has it: a host was released, perhaps."""
    seen = host.presence(record.domain, record.alias, record.source, timeout=_LOOK_SECONDS)
    if seen.live or seen.config or seen.qemu:
        return False
    return host.detach(record.domain, record.alias, record.source, timeout=_LOOK_SECONDS) is DetachOutcome.GONE


def _secret_of(record: AttachmentRecord) -> str:
    """What two volumes have in common that are opened by one secret: the pool, and for CHAP the target; "" for what needs none."""
    if record.options.passphrase:
        return f"passphrase {record.options.passphrase}"
    if not record.source.startswith(("rbd:", "iscsi:")):
        return ""
    return f"{record.pool} {record.source.rpartition('/')[0] if record.source.startswith('iscsi:') else ''}"
