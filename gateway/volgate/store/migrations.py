"""Leads the schema from any earlier version to the current one, in one transaction; refuses a newer one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection, inspect, select

from volgate.errors import Precondition
from volgate.store import tables
from volgate.store.upserts import Upsert

__all__ = ["STEPS", "migrate", "refuse_newer"]


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


def _add_hosts(connection: Connection) -> None:
    """Hosts that are processes of their own are known by name, and by what no two of them may share."""
    run, postgresql = connection.exec_driver_sql, connection.dialect.name == "postgresql"
    text, binary, number = ('VARCHAR COLLATE "C"', "BYTEA", "DOUBLE PRECISION") if postgresql else ("VARCHAR", "BLOB", "FLOAT")
    words = ", ".join(f"{name} {text} NOT NULL" for name in ("name", "machine_id", "iqn", "nqn", "nvme_host_id"))
    run(
        f"CREATE TABLE host ({words}, record {binary} NOT NULL, session {text} NOT NULL, last_heartbeat {number} NOT NULL, "
        "PRIMARY KEY (name))"
    )
    for column in ("machine_id", "iqn", "nqn", "nvme_host_id"):
        run(f"CREATE UNIQUE INDEX host_by_{column} ON host ({column}) WHERE {column} != ''")


def _claim_operations(connection: Connection) -> None:
    """Operations have an owner among controllers, and turns where they wait."""
    run, postgresql = connection.exec_driver_sql, connection.dialect.name == "postgresql"
    text, number = ('VARCHAR COLLATE "C"', "DOUBLE PRECISION") if postgresql else ("VARCHAR", "FLOAT")
    run(f"ALTER TABLE operation ADD COLUMN owner {text} DEFAULT '' NOT NULL")
    for column in ("claim", "cancelling"):
        run(f"ALTER TABLE operation ADD COLUMN {column} INTEGER DEFAULT 0 NOT NULL")
    words = ", ".join(f"{name} {text} NOT NULL" for name in ("id", "name", "machine", "boot", "space"))
    told = ", ".join(f"{name} {text} NOT NULL" for name in ("version", "locks", "pools"))
    run(
        f"CREATE TABLE controller ({words}, pid INTEGER NOT NULL, started BIGINT NOT NULL, {told}, commits BIGINT NOT NULL, "
        f"heartbeat {number} NOT NULL, gone INTEGER NOT NULL, PRIMARY KEY (id))"
    )
    ordinal = "BIGSERIAL NOT NULL" if postgresql else "INTEGER NOT NULL"
    run(f"CREATE TABLE turn (ordinal {ordinal}, key {text} NOT NULL, member {text} NOT NULL, owner {text} NOT NULL, PRIMARY KEY (ordinal))")
    run("CREATE INDEX turn_by_key ON turn (key, ordinal)")
    run("CREATE INDEX turn_by_member ON turn (member)")


def _add_fences(connection: Connection) -> None:
    """Hosts may be kept out of pools."""
    postgresql = connection.dialect.name == "postgresql"
    text, number = ('VARCHAR COLLATE "C"', "DOUBLE PRECISION") if postgresql else ("VARCHAR", "FLOAT")
    words = ", ".join(f"{name} {text} NOT NULL" for name in ("host", "pool", "addresses"))
    connection.exec_driver_sql(f"CREATE TABLE fence ({words}, proven INTEGER NOT NULL, at {number} NOT NULL, PRIMARY KEY (host, pool))")


_PUT = Upsert(tables.meta, ["key"], ["value"])
STEPS: dict[int, Callable[[Connection], None]] = {
    1: _index_domains,
    2: _index_callers,
    3: _add_hosts,
    4: _claim_operations,
    5: _add_fences,
}
"""From version N to N + 1, keyed by N; each is kept for ever, in words of its own: the tables go on changing."""


def migrate(connection: Connection) -> None:
    """Create the tables or run the missing steps, in the transaction of a connection that nobody writes beside.

    Raises Precondition (SCHEMA_NEWER).
    """
    found = refuse_newer(connection)
    if found == 0:
        tables.metadata.create_all(connection)
    for version in range(found or tables.SCHEMA_VERSION, tables.SCHEMA_VERSION):
        STEPS[version](connection)
    if found != tables.SCHEMA_VERSION:
        _PUT.run(connection, {"key": "schema", "value": str(tables.SCHEMA_VERSION)})


def refuse_newer(connection: Connection) -> int:
    """Return the version of the schema, 0 if there is none. Raises Precondition (SCHEMA_NEWER)."""
    found = _version(connection)
    if found > tables.SCHEMA_VERSION:
        raise Precondition(
            f"the database has schema {found}, this program knows {tables.SCHEMA_VERSION}: run the newer volgate, or restore a backup",
            reason="SCHEMA_NEWER",
        )
    return found


def _version(connection: Connection) -> int:
    if not inspect(connection).has_table("meta"):
        return 0
    value = connection.scalar(select(tables.meta.c.value).where(tables.meta.c.key == "schema"))
    return int(value) if value else 0
