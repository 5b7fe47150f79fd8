"""The tables. Their schema has a version; migrations lead to it from every earlier one."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, text

__all__ = ["SCHEMA_VERSION", "attachment", "controller", "fence", "host", "meta", "metadata", "operation", "snapshot", "turn", "volume"]

SCHEMA_VERSION = 6
metadata = MetaData()
Text = String().with_variant(String(collation="C"), "postgresql")  # ordered by code point in both, whatever the server's language

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

operation = Table(
    "operation",
    metadata,
    Column("id", Text, primary_key=True),
    Column("method", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("facts", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("trace", Text, nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("error_reason", Text, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("uid", Text, nullable=False),
    Column("steps", LargeBinary, nullable=False),
    Column("progress", Float, nullable=False),
    Column("owner", Text, nullable=False, server_default=""),  # since 4: the controller that works on it; "" on SQLite
    Column("claim", Integer, nullable=False, server_default=text("0")),  # since 4: grows with each take-over
    Column("cancelling", Integer, nullable=False, server_default=text("0")),  # since 4: somebody asked to stop it
)
_ASKED = operation.c.request_id != ""
Index("operation_by_request", operation.c.principal, operation.c.request_id, sqlite_where=_ASKED, postgresql_where=_ASKED)  # since 3
Index("operation_by_time", operation.c.created_at)
Index("operation_by_state", operation.c.state)

attachment = Table(
    "attachment",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("volume", Text, nullable=False),
    Column("volume_uid", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("domain", Text, nullable=False, server_default=""),  # since 2
)
Index("attachment_by_volume", attachment.c.pool, attachment.c.volume)
Index("attachment_by_domain", attachment.c.host, attachment.c.domain)  # since 2

volume = Table(
    "volume",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("observed_at", Float, nullable=False),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("volume", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("observed_at", Float, nullable=False),
)

host = Table(  # since 4
    "host",
    metadata,
    Column("name", Text, primary_key=True),
    Column("machine_id", Text, nullable=False),
    Column("iqn", Text, nullable=False),
    Column("nqn", Text, nullable=False),
    Column("nvme_host_id", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("session", Text, nullable=False),
    Column("last_heartbeat", Float, nullable=False),
)
for _column in (host.c.machine_id, host.c.iqn, host.c.nqn, host.c.nvme_host_id):  # no two hosts have one; "" is none
    Index(f"host_by_{_column.name}", _column, unique=True, sqlite_where=_column != "", postgresql_where=_column != "")

fence = Table(  # since 6
    "fence",
    metadata,
    Column("host", Text, primary_key=True),
    Column("pool", Text, primary_key=True),
    Column("addresses", Text, nullable=False),
    Column("proven", Integer, nullable=False),
    Column("at", Float, nullable=False),
)

# Since 5, and with rows on PostgreSQL alone: SQLite has one process, which queues in memory.

controller = Table(
    "controller",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("boot", Text, nullable=False),
    Column("space", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column("locks", Text, nullable=False),
    Column("pools", Text, nullable=False),
    Column("commits", BigInteger, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("gone", Integer, nullable=False),
)

turn = Table(
    "turn",
    metadata,
    Column("ordinal", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("key", Text, nullable=False),
    Column("member", Text, nullable=False),
    Column("owner", Text, nullable=False),
)
Index("turn_by_key", turn.c.key, turn.c.ordinal)
Index("turn_by_member", turn.c.member)
