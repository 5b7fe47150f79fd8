"""What an operator has said of a pool: that it drains (takes no new volumes), or is in quarantine (nothing is done in it at all).

In quarantine the storage is neither read nor written: calls that need it are refused before anything is recorded, operations that
were accepted wait, scans and checks leave it alone. What runs in that moment goes on to its end. Attached volumes stay attached,
a detach needs no storage and is done, and lists answer from the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from volgate.backend import FinishedRecord
from volgate.operations.audit import tell_ended
from volgate.operations.requests import Caller
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import PoolStatus
from volgate.store import journal, pool_notes, turns
from volgate.store.database import Commit

__all__ = ["PoolStates"]


class PoolStates:
    """Sets and keeps them: they outlive the process."""

    def __init__(self, world: World, runner: Runner) -> None:
        """Nothing is read yet."""
        self._world = world
        self._runner = runner

    def load(self) -> None:
        """Bring every pool to what was said before this process began, or at another controller since. Raises VolgateError."""
        with self._world.database.read() as connection:
            drains, quarantines = pool_notes.draining(connection), pool_notes.quarantines(connection)
        released = [pool for pool in self._world.pools if pool.quarantine and pool.name not in quarantines]
        for pool in self._world.pools:
            pool.draining, pool.quarantine = pool.name in drains, quarantines.get(pool.name, "")
        for pool in released:
            pool.check()
        if released:
            self._runner.rouse()

    def drain(self, name: str, caller: Caller, *, resume: bool) -> PoolStatus:
        """Make a pool refuse or accept new volumes, also after a restart. Raises NotFound."""
        pool, began = self._world.pools.get(name), time.monotonic()
        self._say(lambda commit: pool_notes.drain(commit, name, drains=not resume))
        pool.draining = not resume
        self._tell("DrainPool", name, caller, began)
        return pool.status()

    def quarantine(self, name: str, reason: str, caller: Caller) -> tuple[PoolStatus, list[str]]:
        """Do nothing in a pool any more, also after a restart; with "" for a reason, again. Raises NotFound.

        Returns also the operations there that have not ended: those that run go on, the others wait.
        """
        pool, began = self._world.pools.get(name), time.monotonic()
        self._say(lambda commit: pool_notes.quarantine(commit, name, reason))
        pool.quarantine = reason
        if not reason:
            pool.check()
            self._runner.rouse()
        self._tell("QuarantinePool", name, caller, began)
        return pool.status(), self._unfinished(name)

    def _say(self, change: Callable[[Commit], object]) -> None:
        """Write it down, and tell other controllers."""

        def said(commit: Commit) -> None:
            change(commit)
            if self._world.database.shared:
                turns.tell(commit, "changes")

        self._world.database.write(said)

    def _unfinished(self, name: str) -> list[str]:
        """The operations in a pool that have not ended, wherever they run."""
        inside = f"pools/{name}/"
        with self._world.database.read() as connection:
            found = {f"operations/{record.id}" for record in journal.unfinished(connection) if f"{record.target}/".startswith(inside)}
        return sorted(found | set(self._runner.jobs.at_pool(name)))

    def _tell(self, method: str, name: str, caller: Caller, began: float) -> None:
        ended = FinishedRecord("", method, f"pools/{name}", "", caller.principal, "ok", time.monotonic() - began)
        tell_ended(self._world.registry, ended)
