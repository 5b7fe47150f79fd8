"""Pools whose storage is of one machine: of several controllers, those on that machine serve them, and the others leave them alone."""

from __future__ import annotations

from functools import partial

import structlog

from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import pool_notes
from volgate.store.controllers import Identity

__all__ = ["Homes"]

_log = structlog.get_logger()


class Homes:
    """Claims such pools for this machine, in the database that controllers share. One thread."""

    def __init__(self, world: World, here: Identity | None) -> None:
        """`here` is this controller, None for one that shares its database with none."""
        self._world, self._here = world, here

    def claim(self, pool: Pool) -> None:
        """Take the pool for this machine, or stand aside for the one that has it. Raises VolgateError."""
        if self._here is None or not self._here.machine or not pool.machine_bound:
            return
        ours = f"{self._here.machine} {self._here.name}"
        with self._world.database.read() as connection:
            owner = pool_notes.home(connection, pool.name)
        if not owner:
            owner = self._world.database.write(partial(pool_notes.claim, pool=pool.name, owner=ours))
        machine, _, controller = owner.partition(" ")
        told = "" if machine == self._here.machine else _told(pool.name, machine, controller)
        if told and not pool.elsewhere:
            _log.warning("a pool is left to another machine", pool=pool.name, machine=machine, controller=controller)
        pool.stand_aside(told)

    def claim_all(self) -> None:
        """Of every pool that another machine has, or nobody yet: it may have been given up there. Raises VolgateError."""
        for pool in self._world.pools:
            self.claim(pool)


def _told(pool: str, machine: str, controller: str) -> str:
    return (
        f"the storage of pool {pool} is on the machine {machine} of controller {controller}, which serves it; call that one, and take the "
        "pool out of this controller's configuration. If the storage has moved here, take the pool out of every configuration first, then "
        "put it back here"
    )
