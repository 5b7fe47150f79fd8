"""From SQLite to PostgreSQL: every row, in one commit."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Table, func, insert, select

from volgate.errors import Precondition
from volgate.store import tables
from volgate.store.sqlite import Sqlite

__all__ = ["move"]

_ROWS = 1000
_SHARED = ("controller", "turn")  # no gateway on SQLite has rows of these
_MOVED: tuple[Table, ...] = tuple(table for name, table in tables.metadata.tables.items() if name not in _SHARED)


def move(source: Path, target: Connection) -> dict[str, int]:
    """Copy what a stopped gateway has in a file into new tables; return the rows of each. Raises Precondition, DataLoss.

    Operations that have not ended come without an owner: the first controller that serves their pool goes on with them.
    """
    if target.scalar(select(func.count()).select_from(tables.meta).where(tables.meta.c.key != "schema")):
        raise Precondition("the database there has rows already: it is some gateway's; name an empty one")
    place = Sqlite(source)
    try:
        with place.read() as connection:
            return {table.name: _copy(table, connection, target) for table in _MOVED}
    finally:
        place.close()


def _copy(table: Table, source: Connection, target: Connection) -> int:
    moved = 0
    rows = source.execute(select(table).where(tables.meta.c.key != "schema") if table is tables.meta else select(table))
    while batch := rows.fetchmany(_ROWS):
        target.execute(insert(table), [{name: _plain(value) for name, value in row._mapping.items()} for row in batch])  # noqa: SLF001  # public, see journal.py
        moved += len(batch)
    return moved


def _plain(value: object) -> object:
    """PostgreSQL has no text with a zero character; SQLite does."""
    return value.replace("\0", "") if isinstance(value, str) else value
