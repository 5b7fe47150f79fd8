"""Inserts that meet a row of the same key: SQLite and PostgreSQL say it in words of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.expression import Executable

__all__ = ["Upsert"]


class Upsert:
    """One statement for each kind of database, built once: building one costs as much as running it."""

    def __init__(self, table: Table, keys: Sequence[str], overwrite: Sequence[str] = ()) -> None:
        """A row whose `keys` are there gets the new values of `overwrite`; without any it stays as it is."""
        self._of: dict[str, Executable] = {}
        for insert, name in ((sqlite.insert, "sqlite"), (postgresql.insert, "postgresql")):
            row = insert(table)
            if overwrite:
                self._of[name] = row.on_conflict_do_update(index_elements=keys, set_={key: row.excluded[key] for key in overwrite})
            else:
                self._of[name] = row.on_conflict_do_nothing(index_elements=keys)

    def run(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Insert or overwrite one row."""
        connection.execute(self._of[connection.dialect.name], values)
