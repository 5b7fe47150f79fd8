"""Leads the schema from any earlier version to the current one, in one transaction; refuses a newer one."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.dialects.sqlite import insert

from volgate.errors import Precondition
from volgate.store import tables

__all__ = ["STEPS", "migrate"]

STEPS: dict[int, Callable[[Connection], None]] = {}
"""From version N to N + 1, keyed by N; each is kept for ever."""


def migrate(engine: Engine) -> None:
    """Create the tables or run the missing steps. Raises Precondition (SCHEMA_NEWER)."""
    with engine.begin() as connection:
        found = _version(connection)
        if found > tables.SCHEMA_VERSION:
            raise Precondition(
                f"the database has schema {found}, this program knows {tables.SCHEMA_VERSION}: run the newer volgate, or restore a backup",
                reason="SCHEMA_NEWER",
            )
        if found == 0:
            tables.metadata.create_all(connection)
        for version in range(found or tables.SCHEMA_VERSION, tables.SCHEMA_VERSION):
            STEPS[version](connection)
        if found != tables.SCHEMA_VERSION:
            row = insert(tables.meta).values(key="schema", value=str(tables.SCHEMA_VERSION))
            connection.execute(row.on_conflict_do_update(index_elements=["key"], set_={"value": row.excluded.value}))


def _version(connection: Connection) -> int:
    if not inspect(connection).has_table("meta"):
        return 0
    value = connection.scalar(select(tables.meta.c.value).where(tables.meta.c.key == "schema"))
    return int(value) if value else 0
