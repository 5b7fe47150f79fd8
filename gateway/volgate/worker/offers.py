"""What a worker says of its plugin and of the pool that it opened."""

from __future__ import annotations

from typing import Any

import msgspec

from volgate.backend import Traits

__all__ = ["Described", "Offer", "Opened", "PoolOf"]


class Offer(msgspec.Struct, frozen=True):
    """What a plugin says of one kind of pools; see :class:`volgate.backend.BackendType`."""

    kind: str
    summary: str
    width: int
    depth: int
    machine_bound: bool = False


class Described(msgspec.Struct, frozen=True):
    """What a plugin offers, and which other hooks it has."""

    offers: tuple[Offer, ...]
    hooks: tuple[str, ...]


class PoolOf(msgspec.Struct, frozen=True):
    """What a worker needs to open a pool; `where` is the dotted path of its table, for messages."""

    kind: str
    table: dict[str, Any]
    where: str
    pool: str
    instance: str


class Opened(msgspec.Struct, frozen=True):
    """An open pool: its facets by name and its facts."""

    capabilities: tuple[str, ...]
    traits: Traits
