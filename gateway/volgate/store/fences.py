"""Which hosts are kept out of which pools: the storage knows addresses, and no hosts. Each function runs inside a commit or a read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, select

from volgate.store.tables import fence
from volgate.store.upserts import Upsert

__all__ = ["Fence", "addresses", "everything", "forget", "holds", "of_host", "put"]

_PUT = Upsert(fence, ["host", "pool"], ("addresses", "proven", "at"))
_READ = select(fence.c.host, fence.c.pool, fence.c.addresses, fence.c.proven, fence.c.at).order_by(fence.c.host, fence.c.pool)


@dataclass(frozen=True, slots=True)
class Fence:
    """A host that is kept out of a pool by these addresses. `proven`: no write of it can land; else it is being fenced, or let in.

    `at` is in UTC seconds.
    """

    host: str
    pool: str
    addresses: tuple[str, ...]
    proven: bool
    at: float


def put(connection: Connection, found: Fence) -> None:
    """Write or overwrite one."""
    values = {"host": found.host, "pool": found.pool, "addresses": msgspec.json.encode(found.addresses).decode()}
    _PUT.run(connection, {**values, "proven": int(found.proven), "at": found.at})


def of_host(connection: Connection, host: str) -> list[Fence]:
    """Those of a host, by pool."""
    return [_fence(row) for row in connection.execute(_READ.where(fence.c.host == host))]


def addresses(connection: Connection, *, but: str) -> set[str]:
    """Every address that is fenced for another host than this one."""
    return {address for row in connection.execute(_READ.where(fence.c.host != but)) for address in _fence(row).addresses}


def everything(connection: Connection) -> dict[str, tuple[str, ...]]:
    """The pools that each host is kept out of."""
    found: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(_READ):
        found[row.host] = (*found.get(row.host, ()), row.pool)
    return found


def holds(connection: Connection, host: str, pool: str) -> bool:
    """Whether it is proven that nothing of a host writes to a pool."""
    query = select(fence.c.proven).where(fence.c.host == host, fence.c.pool == pool)
    return bool(connection.scalar(query))


def forget(connection: Connection, host: str, pool: str) -> None:
    """Remove one; no error if it is gone."""
    connection.execute(delete(fence).where(fence.c.host == host, fence.c.pool == pool))


def _fence(row: Row[Any, Any, Any, Any, Any]) -> Fence:
    return Fence(row.host, row.pool, msgspec.json.decode(row.addresses, type=tuple[str, ...]), bool(row.proven), row.at)
