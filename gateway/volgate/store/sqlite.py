"""SQLite: one file, one process, WAL mode with synchronous FULL: a commit that returned survives a power cut."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
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
_END_SECONDS = 30.0
_TENDED = 64
"""Commits after which the log is carried over into the file, beside those that follow: SQLite would do it inside of one of them."""
_LONGEST_LOG = 2000
"""Pages after which it does so still: little is left to carry over then, and the log begins anew."""


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
        self._commits = 0
        self._due, self._closed = threading.Event(), False
        self._tender = threading.Thread(target=self._tend, name="database-log", daemon=True)
        self._tender.start()

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one commit."""
        with _translated(self._path), self._engine.begin() as connection:
            answer = work(connection)
        self._commits += 1
        if self._commits % _TENDED == 0:
            self._due.set()
        return answer

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees the last commit."""
        with _translated(self._path), self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close the file; what is in its log is carried over."""
        self._closed = True
        self._due.set()
        self._tender.join(_END_SECONDS)
        self._engine.dispose()

    def _tend(self) -> None:
        while self._due.wait():
            self._due.clear()
            if self._closed:
                return
            with contextlib.suppress(sqlite3.Error, DBAPIError):  # what cannot be carried over now, for want of space too, is the next time
                self._carry_over()

    def _carry_over(self) -> None:
        with contextlib.closing(self._engine.raw_connection()) as connection:
            driver: Any = connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", poolclass=QueuePool, pool_size=8, max_overflow=64, connect_args={"check_same_thread": False, "timeout": 30}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves: see the next listener
        size = f"wal_autocheckpoint={_LONGEST_LOG}"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", size):
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
