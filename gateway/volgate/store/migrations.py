"""Leads the schema from any earlier version to the current one, in one transaction; refuses a newer one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.dialects.sqlite import insert

from volgate.errors import Precondition
from volgate.store import tables

__all__ = ["STEPS", "migrate"]


def _index_domains(connection: Connection) -> None:
    """Attachments are found by host and domain; what is known of attachments is known of each pool by itself."""
    run = connection.exec_driver_sql
    run("ALTER TABLE attachment ADD COLUMN domain VARCHAR DEFAULT '' NOT NULL")
    for identifier, record in run("SELECT id, record FROM attachment").all():
        run("UPDATE attachment SET domain = ? WHERE id = ?", (msgspec.json.decode(record)["domain"], identifier))
    run("CREATE INDEX attachment_by_domain ON attachment (host, domain)")
    run(
        "INSERT INTO meta SELECT 'attachments/trusted/' || pool, '1' FROM (SELECT pool FROM volume UNION SELECT pool FROM attachment) "
        "WHERE EXISTS (SELECT 1 FROM meta WHERE key = 'attachments/trusted')"
    )
    run("DELETE FROM meta WHERE key = 'attachments/trusted'")


def _index_callers(connection: Connection) -> None:
    """A request id is found by its caller."""
    connection.exec_driver_sql("DROP INDEX operation_by_request")
    connection.exec_driver_sql("CREATE INDEX operation_by_request ON operation (principal, request_id) WHERE request_id != ''")


STEPS: dict[int, Callable[[Connection], None]] = {1: _index_domains, 2: _index_callers}
"""From version N to N + 1, keyed by N; each is kept for ever, in words of its own: the tables go on changing."""


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
