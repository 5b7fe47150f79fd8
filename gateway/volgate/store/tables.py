"""The tables. Their schema has a version; migrations lead to it from every earlier one."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, LargeBinary, MetaData, String, Table

__all__ = ["SCHEMA_VERSION", "attachment", "meta", "metadata", "operation", "snapshot", "volume"]

SCHEMA_VERSION = 3
metadata = MetaData()

meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))

operation = Table(
    "operation",
    metadata,
    Column("id", String, primary_key=True),
    Column("method", String, nullable=False),
    Column("target", String, nullable=False),
    Column("request_id", String, nullable=False),
    Column("body_hash", String, nullable=False),
    Column("principal", String, nullable=False),
    Column("state", String, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("facts", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("trace", String, nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("error_reason", String, nullable=False),
    Column("error_message", String, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("uid", String, nullable=False),
    Column("steps", LargeBinary, nullable=False),
    Column("progress", Float, nullable=False),
)
Index("operation_by_request", operation.c.principal, operation.c.request_id, sqlite_where=operation.c.request_id != "")  # since 3
Index("operation_by_time", operation.c.created_at)
Index("operation_by_state", operation.c.state)

attachment = Table(
    "attachment",
    metadata,
    Column("id", String, primary_key=True),
    Column("pool", String, nullable=False),
    Column("volume", String, nullable=False),
    Column("volume_uid", String, nullable=False),
    Column("host", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("domain", String, nullable=False, server_default=""),  # since 2
)
Index("attachment_by_volume", attachment.c.pool, attachment.c.volume)
Index("attachment_by_domain", attachment.c.host, attachment.c.domain)  # since 2

volume = Table(
    "volume",
    metadata,
    Column("pool", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("uid", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("observed_at", Float, nullable=False),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("pool", String, primary_key=True),
    Column("volume", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("uid", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("observed_at", Float, nullable=False),
)
