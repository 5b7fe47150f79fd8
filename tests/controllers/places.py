"""Databases of both kinds for one test: opened as often as it likes, asked in SQL."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from pathlib import Path
from typing import Any

from tests.labs.postgres import PostgresServer
from volgate.secret import Secret
from volgate.store.controllers import Identity
from volgate.store.database import Database
from volgate.store.postgres import Postgres

__all__ = ["OnPostgres", "OnSqlite", "identity"]


def identity(name: str = "c", **others: Any) -> Identity:
    """A controller that is no process."""
    values = {"machine": "m", "boot": "b", "space": "s", "pid": 1, "started": 1, "version": "0", "locks": "/nowhere"}
    return Identity(id=uuid.uuid4().hex, name=name, **{**values, **others})


class OnSqlite:
    """One file."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "v.db"

    def open(self) -> Database:
        return Database(self.path)

    def ask(self, words: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            if ";" in words:
                connection.executescript(words)
                return []
            return connection.execute(words).fetchall()

    def close(self) -> None:
        """The folder goes by itself."""


class OnPostgres:
    """One database of a server."""

    kind = "postgresql"

    def __init__(self, server: PostgresServer) -> None:
        self.server, self.name = server, server.create()

    def open(self, *, port: int = 0, name: str = "c") -> Database:
        return Database(self.place(port=port, name=name))

    def place(self, *, port: int = 0, name: str = "c") -> Postgres:
        return Postgres(self.server.url(self.name, port=port), lambda: Secret(self.server.password), identity(name))

    def ask(self, words: str) -> list[tuple[Any, ...]]:
        with self.server.admin(self.name) as connection:
            connection.execute("SET ROLE volgate")
            cursor = connection.execute(words)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.server.drop(self.name)
