"""Attachments: what nobody else remembers about a disk of a domain. Each function runs inside a commit or a read."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from volgate.store.records import AttachmentRecord
from volgate.store.tables import attachment

__all__ = ["find", "forget", "of_volume", "page", "put", "replace"]

_decoder = msgspec.json.Decoder(AttachmentRecord)


def put(connection: Connection, record: AttachmentRecord) -> None:
    """Write or overwrite one."""
    values = {
        "id": record.id,
        "pool": record.pool,
        "volume": record.volume,
        "volume_uid": record.volume_uid,
        "host": record.host,
        "record": msgspec.json.encode(record),
    }
    connection.execute(insert(attachment).values(values).on_conflict_do_update(index_elements=["id"], set_=values))


def replace(connection: Connection, old: AttachmentRecord, new: AttachmentRecord) -> bool:
    """Overwrite one if nobody has changed it since it was read; say whether that was so."""
    if find(connection, old.id) != old:
        return False
    put(connection, new)
    return True


def forget(connection: Connection, identifier: str) -> None:
    """Remove one; no error if it is gone."""
    connection.execute(delete(attachment).where(attachment.c.id == identifier))


def find(connection: Connection, identifier: str) -> AttachmentRecord | None:
    """Read one."""
    found = connection.scalar(select(attachment.c.record).where(attachment.c.id == identifier))
    return _decoder.decode(found) if found else None


def of_volume(connection: Connection, pool: str, volume: str) -> list[AttachmentRecord]:
    """Every attachment of a volume's name, by id."""
    query = select(attachment.c.record).where(attachment.c.pool == pool, attachment.c.volume == volume).order_by(attachment.c.id)
    return [_decoder.decode(found) for found in connection.scalars(query)]


def page(
    connection: Connection, *, pool: str = "", volume: str = "", host: str = "", after: str = "", limit: int = 1000
) -> list[AttachmentRecord]:
    """A page by id, filtered."""
    query = select(attachment.c.record).where(attachment.c.id > after).order_by(attachment.c.id).limit(limit)
    for column, value in ((attachment.c.pool, pool), (attachment.c.volume, volume), (attachment.c.host, host)):
        if value:
            query = query.where(column == value)
    return [_decoder.decode(found) for found in connection.scalars(query)]
