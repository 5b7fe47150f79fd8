"""Now and then each host is asked what it has of ours that no attachment accounts for. It takes that away itself, once it was so twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from volgate.errors import Precondition, VolgateError
from volgate.model import Leftover
from volgate.operations.fleet import Station
from volgate.operations.sweep import Sweep
from volgate.operations.world import World

__all__ = ["Leftovers"]

_log = structlog.get_logger()
_HOSTS_AT_ONCE = 32
_LEAST_SECONDS = 5.0  # a round waits so long; hosts that take longer are heard of in the next


class Leftovers:
    """The rounds. One thread runs."""

    def __init__(self, world: World, accounted: Callable[[str], Iterable[str]]) -> None:
        """`accounted` tells what the attachments of a host, and the operations on it, have there, as libvirt names it."""
        self._world, self._accounted = world, accounted
        self._sweep: Sweep[Station, list[Leftover]] = Sweep("leftovers", _HOSTS_AT_ONCE)
        self._due = 0.0
        self._told: dict[str, set[tuple[str, str, str]]] = {}

    def run(self) -> None:
        """Make a round, if it is time."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._world.settings.limits.scan_seconds
        for name, found in self._sweep.run(self._world.hosts.stations(), self._look, _LEAST_SECONDS).items():
            self._tell(name, found)

    def close(self) -> None:
        """Begin nothing more."""
        self._sweep.close()

    def _look(self, station: Station) -> list[Leftover]:
        """What stays, and what was taken away. What a domain has is left alone: after a lost database nothing else knows it."""
        host, timeout = station.host, self._world.settings.limits.libvirt_timeout
        try:
            accounted = set(self._accounted(station.name))
            if not host.leftovers(sorted(accounted), apply=False, timeout=timeout):
                return []
            accounted |= {found.disk.source for found in host.our_disks(timeout=timeout)}
            return list(host.leftovers(sorted(accounted), apply=True, timeout=timeout))
        except Precondition as error:  # an older one has nothing of ours
            _log.debug("a host does not tell what it has", host=station.name, error=error.message)
        except VolgateError as error:
            _log.info("what a host has left cannot be looked at", host=station.name, error=error.message)
        return []

    def _tell(self, name: str, found: list[Leftover]) -> None:
        """Each once, until it is gone."""
        now = {(one.kind, one.name, one.problem) for one in found}
        for one in found:
            if one.removed or (one.kind, one.name, one.problem) not in self._told.get(name, ()):
                _log.warning("left on a host", host=name, kind=one.kind, name=one.name, problem=one.problem, removed=one.removed)
        self._told[name] = now
