"""SQLite: one file, one process, WAL mode with synchronous FULL: a commit that returned survives a power cut."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from volgate.errors import DataLoss, OutOfSpace, Precondition, VolgateError
from volgate.store.migrations import migrate

__all__ = ["Sqlite"]

T = TypeVar("T")
_ROOM = 1 << 20


class Sqlite:
    """The place of tables in one file."""

    owner = ""
    patience: float | None = None
    """How long a change may wait for its turn, seconds: without limit, for nobody else writes."""

    def __init__(self, path: Path) -> None:
        """Open or create the file and bring its schema up to date. Raises as `Database.write`, and Precondition (SCHEMA_NEWER)."""
        self._path = path
        with _translated(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite gives its side files the same mode
            self._engine = _engine(path)
            with self._engine.begin() as connection:
                migrate(connection)
        path.chmod(0o600)

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one commit."""
        with _translated(self._path), self._engine.begin() as connection:
            return work(connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees the last commit."""
        with _translated(self._path), self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", poolclass=QueuePool, pool_size=8, max_overflow=64, connect_args={"check_same_thread": False, "timeout": 30}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves: see the next listener
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Tell apart what an operator can do: free space, repair a file system, restore a backup."""
    try:
        yield
    except DBAPIError as error:
        text = str(error.orig)
        if "malformed" in text or "not a database" in text:
            raise DataLoss(f"the database is damaged ({text}); restore a backup, or remove it: it is rebuilt from the storages") from error
        if not any(mark in text for mark in ("full", "disk I/O", "readonly", "unable to open")):
            raise
        raise _unwritable(path, text) from error
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _unwritable(path: Path, text: str) -> VolgateError:
    """SQLite calls it an I/O error too when one of its side files cannot grow."""
    found = os.statvfs(path.parent)
    if "full" in text or "No space" in text or found.f_bavail * found.f_frsize < _ROOM or (found.f_files and not found.f_favail):
        return OutOfSpace(f"the state directory {path.parent} is out of space ({text}): free space and repeat", reason="STATE_FULL")
    return Precondition(
        f"{path} cannot be written ({text}): look at its file system and at the kernel's log, then repeat", reason="STATE_UNWRITABLE"
    )
