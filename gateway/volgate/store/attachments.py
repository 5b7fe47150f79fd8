"""Attachments: what nobody else remembers about a disk of a domain. Each function runs inside a commit or a read."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, bindparam, delete, select

from volgate.store.records import AttachmentRecord
from volgate.store.tables import attachment, meta
from volgate.store.upserts import Upsert

__all__ = ["add", "distrust", "find", "forget", "of_domain", "of_volume", "page", "put", "replace", "trust", "trusted"]

_TRUSTED = "attachments/trusted/"  # and the pool
_decoder = msgspec.json.Decoder(AttachmentRecord)
# statements are built once: building one costs as much as running it
_PUT = Upsert(attachment, ["id"], ("pool", "volume", "volume_uid", "host", "record", "domain"))
_TRUST = Upsert(meta, ["key"])
_FORGET = delete(attachment).where(attachment.c.id == bindparam("of"))
_FIND = select(attachment.c.record).where(attachment.c.id == bindparam("of"))
_OF_VOLUME = (
    select(attachment.c.record)
    .where(attachment.c.pool == bindparam("of_pool"), attachment.c.volume == bindparam("of_volume"))
    .order_by(attachment.c.id)
)
_OF_DOMAIN = (
    select(attachment.c.record)
    .where(attachment.c.host == bindparam("of_host"), attachment.c.domain == bindparam("of_domain"))
    .order_by(attachment.c.id)
)


def put(connection: Connection, record: AttachmentRecord) -> None:
    """Write or overwrite one."""
    values = {
        "id": record.id,
        "pool": record.pool,
        "volume": record.volume,
        "volume_uid": record.volume_uid,
        "host": record.host,
        "record": msgspec.json.encode(record),
        "domain": record.domain,
    }
    _PUT.run(connection, values)


def trust(connection: Connection, pool: str) -> None:
    """Note that every disk that a host has of a pool's volumes is on record: true from the first complete look on."""
    _TRUST.run(connection, {"key": _TRUSTED + pool, "value": "1"})


def distrust(connection: Connection, pool: str) -> None:
    """Take that back: the pool is gone, and what comes back under its name may be another."""
    connection.execute(delete(meta).where(meta.c.key == _TRUSTED + pool))


def trusted(connection: Connection) -> set[str]:
    """The pools of which that was noted."""
    found = connection.scalars(select(meta.c.key).where(meta.c.key.startswith(_TRUSTED, autoescape=True)))
    return {key.removeprefix(_TRUSTED) for key in found}


def add(connection: Connection, record: AttachmentRecord) -> bool:
    """Write one if its id has none; say whether that was so."""
    if find(connection, record.id) is not None:
        return False
    put(connection, record)
    return True


def replace(connection: Connection, old: AttachmentRecord, new: AttachmentRecord) -> bool:
    """Overwrite one if nobody has changed it since it was read; say whether that was so."""
    if find(connection, old.id) != old:
        return False
    put(connection, new)
    return True


def forget(connection: Connection, identifier: str) -> None:
    """Remove one; no error if it is gone."""
    connection.execute(_FORGET, {"of": identifier})


def find(connection: Connection, identifier: str) -> AttachmentRecord | None:
    """Read one."""
    found = connection.scalar(_FIND, {"of": identifier})
    return _decoder.decode(found) if found else None


def of_volume(connection: Connection, pool: str, volume: str) -> list[AttachmentRecord]:
    """Every attachment of a volume's name, by id."""
    found = connection.scalars(_OF_VOLUME, {"of_pool": pool, "of_volume": volume})
    return [_decoder.decode(record) for record in found]


def of_domain(connection: Connection, host: str, domain: str) -> list[AttachmentRecord]:
    """Every attachment of a host's domain (uuid), by id."""
    found = connection.scalars(_OF_DOMAIN, {"of_host": host, "of_domain": domain})
    return [_decoder.decode(record) for record in found]


def page(
    connection: Connection,
    *,
    pool: str = "",
    volume: str = "",
    host: str = "",
    after: str = "",
    limit: int = 1000,
    within: tuple[Collection[str] | None, Collection[str] | None] = (None, None),
) -> list[AttachmentRecord]:
    """A page by id, filtered; `within`: the pools and the hosts of which there may be any, None: all."""
    query = select(attachment.c.record).where(attachment.c.id > after).order_by(attachment.c.id).limit(limit)
    for column, value in ((attachment.c.pool, pool), (attachment.c.volume, volume), (attachment.c.host, host)):
        if value:
            query = query.where(column == value)
    for column, names in zip((attachment.c.pool, attachment.c.host), within, strict=True):
        if names is not None:
            query = query.where(column.in_(sorted(names)))
    return [_decoder.decode(found) for found in connection.scalars(query)]
