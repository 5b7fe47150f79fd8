"""The index: volumes and snapshots as last seen on the storage. Rows are written in the commit of an operation's result, or by a scan.

Decisions are never taken from it. Each function runs inside a commit or a read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, delete, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert

from volgate.model import Snapshot, Volume
from volgate.store.records import IndexedSnapshot, IndexedVolume
from volgate.store.tables import attachment, snapshot, volume

__all__ = [
    "find_snapshot",
    "find_volume",
    "forget_snapshot",
    "forget_volume",
    "observed",
    "page_snapshots",
    "page_volumes",
    "pool_rows",
    "put_snapshot",
    "put_volume",
    "replace_snapshots",
    "row_of",
]

Row = tuple[bytes, tuple[bytes, ...]]
"""A volume and its snapshots by name, encoded."""
_volumes = msgspec.json.Decoder(Volume)
_snapshots = msgspec.json.Decoder(Snapshot)


def put_volume(connection: Connection, pool: str, found: Volume, now: float) -> None:
    """Write or overwrite a volume's row."""
    values = {"pool": pool, "name": found.name, "uid": found.uid, "record": msgspec.json.encode(found), "observed_at": now}
    connection.execute(insert(volume).values(values).on_conflict_do_update(index_elements=["pool", "name"], set_=values))


def forget_volume(connection: Connection, pool: str, name: str) -> None:
    """Remove a volume's row and those of its snapshots."""
    connection.execute(delete(volume).where(volume.c.pool == pool, volume.c.name == name))
    connection.execute(delete(snapshot).where(snapshot.c.pool == pool, snapshot.c.volume == name))


def find_volume(connection: Connection, pool: str, name: str) -> IndexedVolume | None:
    """Read a volume's row with the ids of its attachments."""
    row = connection.execute(select(volume.c.record, volume.c.observed_at).where(volume.c.pool == pool, volume.c.name == name)).first()
    if row is None:
        return None
    held = connection.scalars(
        select(attachment.c.id).where(attachment.c.pool == pool, attachment.c.volume == name).order_by(attachment.c.id)
    )
    return IndexedVolume(pool, _volumes.decode(row.record), row.observed_at, tuple(held))


def page_volumes(connection: Connection, pool: str, after: tuple[str, str], limit: int) -> list[IndexedVolume]:
    """A page by pool and name; `after` is the pool and name of the last row seen."""
    query = select(volume.c.pool, volume.c.name, volume.c.record, volume.c.observed_at).order_by(volume.c.pool, volume.c.name).limit(limit)
    if pool:
        query = query.where(volume.c.pool == pool, volume.c.name > (after[1] if after[0] == pool else ""))
    else:
        query = query.where(tuple_(volume.c.pool, volume.c.name) > tuple_(*after))
    rows = connection.execute(query).all()
    if not rows:
        return []
    held: dict[tuple[str, str], list[str]] = {}
    span = select(attachment.c.pool, attachment.c.volume, attachment.c.id).where(
        tuple_(attachment.c.pool, attachment.c.volume) >= tuple_(rows[0].pool, rows[0].name),
        tuple_(attachment.c.pool, attachment.c.volume) <= tuple_(rows[-1].pool, rows[-1].name),
    )
    for owner, name, identifier in connection.execute(span):
        held.setdefault((owner, name), []).append(identifier)
    decode = _volumes.decode
    return [IndexedVolume(owner, decode(record), at, tuple(sorted(held.get((owner, name), ())))) for owner, name, record, at in rows]


def pool_rows(connection: Connection, pool: str) -> dict[str, Row]:
    """Every volume of a pool by name, as :func:`row_of` makes it: for a scan to compare with."""
    cut: dict[str, list[bytes]] = {}
    query = select(snapshot.c.volume, snapshot.c.record).where(snapshot.c.pool == pool).order_by(snapshot.c.name)
    for of, record in connection.execute(query):
        cut.setdefault(of, []).append(record)
    rows = connection.execute(select(volume.c.name, volume.c.record).where(volume.c.pool == pool))
    return {name: (record, tuple(cut.get(name, ()))) for name, record in rows}


def row_of(found: Volume, snapshots: Iterable[Snapshot]) -> Row:
    """What the index holds of a volume and its snapshots once they are written."""
    ordered = sorted(snapshots, key=lambda item: item.name)
    return msgspec.json.encode(found), tuple(msgspec.json.encode(item) for item in ordered)


def observed(connection: Connection, pool: str, at: float) -> None:
    """Note that all rows of a pool that are older were found as they are at a time."""
    for table in (volume, snapshot):
        connection.execute(update(table).where(table.c.pool == pool, table.c.observed_at < at).values(observed_at=at))


def put_snapshot(connection: Connection, pool: str, found: Snapshot, now: float) -> None:
    """Write or overwrite a snapshot's row."""
    values = {
        "pool": pool,
        "volume": found.volume,
        "name": found.name,
        "uid": found.uid,
        "record": msgspec.json.encode(found),
        "observed_at": now,
    }
    connection.execute(insert(snapshot).values(values).on_conflict_do_update(index_elements=["pool", "volume", "name"], set_=values))


def forget_snapshot(connection: Connection, pool: str, of: str, name: str) -> None:
    """Remove a snapshot's row."""
    connection.execute(delete(snapshot).where(snapshot.c.pool == pool, snapshot.c.volume == of, snapshot.c.name == name))


def replace_snapshots(connection: Connection, pool: str, of: str, found: Iterable[Snapshot], now: float) -> None:
    """Make the rows of one volume's snapshots equal to what the storage has."""
    connection.execute(delete(snapshot).where(snapshot.c.pool == pool, snapshot.c.volume == of))
    for item in found:
        put_snapshot(connection, pool, item, now)


def find_snapshot(connection: Connection, pool: str, of: str, name: str) -> IndexedSnapshot | None:
    """Read a snapshot's row."""
    query = select(snapshot.c.record, snapshot.c.observed_at).where(
        snapshot.c.pool == pool, snapshot.c.volume == of, snapshot.c.name == name
    )
    row = connection.execute(query).first()
    return IndexedSnapshot(pool, _snapshots.decode(row.record), row.observed_at) if row else None


def page_snapshots(connection: Connection, pool: str, of: str, after: Sequence[str], limit: int) -> list[IndexedSnapshot]:
    """A page by pool, volume and name; `after` holds these three of the last row seen."""
    key = tuple_(snapshot.c.pool, snapshot.c.volume, snapshot.c.name)
    query = select(snapshot.c.pool, snapshot.c.record, snapshot.c.observed_at).where(key > tuple_(*after))
    query = query.order_by(snapshot.c.pool, snapshot.c.volume, snapshot.c.name).limit(limit)
    if pool:
        query = query.where(snapshot.c.pool == pool)
    if of:
        query = query.where(snapshot.c.volume == of)
    return [IndexedSnapshot(owner, _snapshots.decode(record), at) for owner, record, at in connection.execute(query)]
