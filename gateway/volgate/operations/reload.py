"""Pools come, change and go while the gateway runs, as a configuration says that was read again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from volgate.errors import VolgateError
from volgate.operations.homes import Homes
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import attachments, index, pool_notes
from volgate.store.database import Commit

if TYPE_CHECKING:
    # with it comes the driver of a database that most have not
    from volgate.operations.peers import Peers

__all__ = ["Reload"]

_SHOWN = 3
_log = structlog.get_logger()


class Reload:
    """Brings the served pools to what is wanted: at once what can be, the rest when nothing holds it any more."""

    def __init__(self, world: World, runner: Runner, homes: Homes, peers: Peers | None = None) -> None:
        """What is served now is wanted."""
        self._world = world
        self._homes, self._peers = homes, peers
        self._runner = runner
        self._lock = threading.Lock()
        self._told: set[str] | None = None
        self._attempt: threading.Thread | None = None
        self._wanted: Mapping[str, Mapping[str, Any]] = {pool.name: pool.table for pool in world.pools}

    def want(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Serve these pools. Raises InvalidRequest naming the key of a table that makes no sense: then nothing changes."""
        served = {pool.name: pool.table for pool in self._world.pools}
        self._world.pools.try_out({name: table for name, table in tables.items() if table != served.get(name)})
        with self._lock:
            self._wanted = dict(tables)
        self.settle()

    def settle(self) -> None:
        """Go on towards what is wanted; a pool that is held stays as it is, and says by what."""
        with self._lock:
            for pool in list(self._world.pools):
                if (table := self._wanted.get(pool.name)) == pool.table:
                    pool.leaving = ""
                    if pool.awaited:
                        self._try_again(pool)
                    continue
                held = self._held(pool.name, goes=table is None)
                if held and table is None:
                    pool.leaving = f"it is no more in the configuration, and goes when nothing holds it; now do {', '.join(held[:_SHOWN])}"
                elif table is None:
                    self._leave(pool.name)
                elif not held:
                    self._come(pool.name, table)
            for name, table in self._wanted.items():
                if name not in self._world.pools:
                    self._come(name, table)
            self._tidy()
            self._homes.claim_all()
            if self._peers and (now := {pool.name for pool in self._world.pools if not pool.elsewhere}) != self._told:
                self._peers.serve(now)
                self._told = now

    def _try_again(self, pool: Pool) -> None:
        """Serve a pool whose plugin has come; else have it imported once more, aside: that takes long on a machine that is busy."""
        registry = self._world.registry
        if registry.has(pool.kind):
            self._come(pool.name, pool.table)
        elif self._attempt is None or not self._attempt.is_alive():
            self._attempt = threading.Thread(target=registry.backend_type, args=(pool.kind,), name="plugins", daemon=True)
            self._attempt.start()

    def _elsewhere(self) -> set[str]:
        """The pools that other controllers serve: what is known of them is theirs too."""
        return self._peers.served() if self._peers else set()

    def _held(self, name: str, *, goes: bool) -> list[str]:
        held = self._runner.jobs.at_pool(name)
        if goes:  # one that only changes keeps its volumes where they are
            with self._world.database.read() as connection:
                held += [f"attachments/{record.id}" for record in attachments.page(connection, pool=name, limit=_SHOWN)]
        return held

    def _leave(self, name: str) -> None:
        self._world.pools.remove(name)
        self._runner.lanes.forget(name)
        self._world.attachments_known.discard(name)
        if name not in self._elsewhere():
            self._world.database.write(lambda commit: _forget(commit, name))
        _log.info("pool is served no more", pool=name)

    def _tidy(self) -> None:
        """Forget what the index has of pools that are not served: they went while the gateway was down, or a scan of them ended late."""
        with self._world.database.read() as connection:
            gone = [name for name in index.pools(connection) if name not in self._world.pools]
        if gone:
            gone = sorted(set(gone) - self._elsewhere())
        for name in gone:
            self._world.database.write(partial(index.forget_pool, pool=name))

    def _come(self, name: str, table: Mapping[str, Any]) -> None:
        try:
            pool = self._world.pools.add(name, table)
        except VolgateError as error:
            _log.error("a pool of the configuration is not served", pool=name, error=error.message)
            return
        with self._world.database.read() as connection:
            pool.draining = name in pool_notes.draining(connection)
            pool.quarantine = pool_notes.quarantines(connection).get(name, "")
        self._homes.claim(pool)
        pool.check()
        _log.info("pool is served", pool=name, health=str(pool.health), problem=pool.problem)


def _forget(commit: Commit, name: str) -> None:
    """What is known of a pool that went: all of it is on its storage."""
    index.forget_pool(commit, name)
    attachments.distrust(commit, name)
    pool_notes.forget(commit, name)
