"""Which pools an operator drains: nobody else knows it, so it must outlive the process. Each function runs inside a commit or a read."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from volgate.store.tables import meta

__all__ = ["draining", "put"]

_PREFIX = "drain/"


def put(connection: Connection, pool: str, *, drains: bool) -> None:
    """Note that a pool drains, or that it takes volumes again."""
    key = _PREFIX + pool
    if drains:
        connection.execute(insert(meta).values(key=key, value="1").on_conflict_do_nothing())
    else:
        connection.execute(delete(meta).where(meta.c.key == key))


def draining(connection: Connection) -> set[str]:
    """Names of the pools that drain, configured now or not."""
    found = connection.scalars(select(meta.c.key).where(meta.c.key.startswith(_PREFIX)))
    return {key.removeprefix(_PREFIX) for key in found}
