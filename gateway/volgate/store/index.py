"""The index: volumes and snapshots as last seen on the storage. Rows are written in the commit of an operation's result, or by a scan.

Decisions are never taken from it. Each function runs inside a commit or a read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, delete, select, tuple_, update

from volgate.model import Snapshot, Volume
from volgate.store.records import IndexedSnapshot, IndexedVolume, VolumeRow
from volgate.store.tables import attachment, snapshot, volume
from volgate.store.upserts import Upsert

__all__ = [
    "find_snapshot",
    "find_volume",
    "forget_pool",
    "forget_snapshot",
    "forget_volume",
    "observed",
    "page_snapshots",
    "page_volumes",
    "pool_rows",
    "pools",
    "put_snapshot",
    "put_volume",
    "replace_snapshots",
    "row_of",
]

Row = tuple[bytes, tuple[bytes, ...]]
"""A volume and its snapshots by name, encoded."""
_volumes = msgspec.json.Decoder(Volume)
_snapshots = msgspec.json.Decoder(Snapshot)
# statements of frequent calls are built once: building one costs as much as running it
_PUT_VOLUME = Upsert(volume, ["pool", "name"], ("uid", "record", "observed_at"))
_PUT_SNAPSHOT = Upsert(snapshot, ["pool", "volume", "name"], ("uid", "record", "observed_at"))
_FORGET_VOLUME = (
    delete(volume).where(volume.c.pool == bindparam("of_pool"), volume.c.name == bindparam("of_name")),
    delete(snapshot).where(snapshot.c.pool == bindparam("of_pool"), snapshot.c.volume == bindparam("of_name")),
)
_HELD = (attachment.c.pool == volume.c.pool) & (attachment.c.volume == volume.c.name)
_FIND_VOLUME = (
    select(volume.c.record, volume.c.observed_at, attachment.c.id)
    .outerjoin(attachment, _HELD)
    .where(volume.c.pool == bindparam("of_pool"), volume.c.name == bindparam("of_name"))
    .order_by(attachment.c.id)
)
_key = tuple_(volume.c.pool, volume.c.name)
_PAGED = select(volume.c.pool, volume.c.name, volume.c.record, volume.c.observed_at).order_by(volume.c.pool, volume.c.name)
_PAGE = _PAGED.where(_key > tuple_(bindparam("after_pool"), bindparam("after_name"))).limit(bindparam("most"))
_PAGE_OF_POOL = _PAGED.where(volume.c.pool == bindparam("of_pool"), volume.c.name > bindparam("after")).limit(bindparam("most"))
_holder = tuple_(attachment.c.pool, attachment.c.volume)
_HELD_IN_PAGE = (
    select(attachment.c.pool, attachment.c.volume, attachment.c.id)
    .where(
        _holder >= tuple_(bindparam("first_pool"), bindparam("first")),
        _holder <= tuple_(bindparam("last_pool"), bindparam("last")),
    )
    .order_by(attachment.c.id)
)


def put_volume(connection: Connection, pool: str, found: Volume, now: float) -> None:
    """Write or overwrite a volume's row."""
    values = {"pool": pool, "name": found.name, "uid": found.uid, "record": msgspec.json.encode(found), "observed_at": now}
    _PUT_VOLUME.run(connection, values)


def forget_volume(connection: Connection, pool: str, name: str) -> None:
    """Remove a volume's row and those of its snapshots."""
    for statement in _FORGET_VOLUME:
        connection.execute(statement, {"of_pool": pool, "of_name": name})


def find_volume(connection: Connection, pool: str, name: str) -> IndexedVolume | None:
    """Read a volume's row with the ids of its attachments."""
    rows = connection.execute(_FIND_VOLUME, {"of_pool": pool, "of_name": name}).all()
    if not rows:
        return None
    return IndexedVolume(pool, _volumes.decode(rows[0].record), rows[0].observed_at, tuple(row.id for row in rows if row.id))


def page_volumes(
    connection: Connection, pool: str, after: tuple[str, str], limit: int, pools: Collection[str] | None = None
) -> list[VolumeRow]:
    """A page by pool and name, of `pools` alone if given; `after` is the pool and name of the last row seen."""
    if pools is not None:
        within = volume.c.pool.in_([name for name in sorted(pools) if pool in ("", name)])
        found = connection.execute(_PAGED.where(within, _key > tuple_(*after)).limit(limit))
    elif pool:
        found = connection.execute(_PAGE_OF_POOL, {"of_pool": pool, "after": after[1] if after[0] == pool else "", "most": limit})
    else:
        found = connection.execute(_PAGE, {"after_pool": after[0], "after_name": after[1], "most": limit})
    rows = found.all()
    if not rows:
        return []
    held: dict[tuple[str, str], tuple[str, ...]] = {}
    span = {"first_pool": rows[0].pool, "first": rows[0].name, "last_pool": rows[-1].pool, "last": rows[-1].name}
    for owner, name, identifier in connection.execute(_HELD_IN_PAGE, span):
        held[owner, name] = (*held.get((owner, name), ()), identifier)
    return [VolumeRow(owner, name, record, at, held.get((owner, name), ())) for owner, name, record, at in rows]


def pools(connection: Connection) -> set[str]:
    """The pools that have rows."""
    return set(connection.scalars(select(volume.c.pool).distinct().union(select(snapshot.c.pool).distinct())))


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
    _PUT_SNAPSHOT.run(connection, values)


def forget_pool(connection: Connection, pool: str) -> None:
    """Remove every row of a pool."""
    for table in (volume, snapshot):
        connection.execute(delete(table).where(table.c.pool == pool))


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


def page_snapshots(
    connection: Connection, pool: str, of: str, after: Sequence[str], limit: int, pools: Collection[str] | None = None
) -> list[IndexedSnapshot]:
    """A page by pool, volume and name, of `pools` alone if given; `after` holds these three of the last row seen."""
    key = tuple_(snapshot.c.pool, snapshot.c.volume, snapshot.c.name)
    query = select(snapshot.c.pool, snapshot.c.record, snapshot.c.observed_at).where(key > tuple_(*after))
    query = query.order_by(snapshot.c.pool, snapshot.c.volume, snapshot.c.name).limit(limit)
    if pool:
        query = query.where(snapshot.c.pool == pool)
    if of:
        query = query.where(snapshot.c.volume == of)
    if pools is not None:
        query = query.where(snapshot.c.pool.in_(sorted(pools)))
    return [IndexedSnapshot(owner, _snapshots.decode(record), at) for owner, record, at in connection.execute(query)]
