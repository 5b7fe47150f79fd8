"""Where operations run: each pool has threads of its own, so that one that hangs takes nobody else's."""

from __future__ import annotations

from volgate.lanes import Lane
from volgate.operations.world import World

__all__ = ["PoolLanes"]


class PoolLanes:
    """One lane for each pool that is served, made when it is needed, and one for what belongs to no pool."""

    def __init__(self, world: World) -> None:
        """Pools may come and go."""
        self._world = world
        self._other = self._make("operations")
        self._of: dict[str, Lane] = {}

    @property
    def all(self) -> list[Lane]:
        """Every lane."""
        return [self._other, *(self._at(pool.name) for pool in self._world.pools)]

    def of(self, target: str) -> Lane:
        """The lane for operations on an object, by its resource name."""
        head, _, rest = target.partition("/")
        name = rest.partition("/")[0]
        return self._at(name) if head == "pools" and name in self._world.pools else self._other

    def forget(self, pool: str) -> None:
        """A pool is gone: its lane goes too."""
        if lane := self._of.pop(pool, None):
            lane.close()

    def _at(self, pool: str) -> Lane:
        return self._of.get(pool) or self._of.setdefault(pool, self._make(f"operations {pool}"))

    def _make(self, name: str) -> Lane:
        limits = self._world.settings.limits
        return Lane(name, limits.operation_threads, limits.queued_operations * 3)
