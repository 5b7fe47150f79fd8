"""The database: opened by one process, written by one thread that commits for everybody, read beside it.

SQLite in WAL mode with synchronous FULL: a commit that returned survives a power cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from volgate.errors import DataLoss, OutOfSpace, Precondition, Unreachable, VolgateError
from volgate.store import tables
from volgate.store.migrations import migrate

__all__ = ["Commit", "Database", "StateLock"]

T = TypeVar("T")
Commit = Connection
"""What a change is given inside a commit; callers pass it on to the functions of this package and nothing else."""
_Job = tuple[Callable[[Connection], Any], "Future[Any]"]
_GROUP = 64
_ROOM = 1 << 20
_log = structlog.get_logger()


class StateLock:
    """The lock of a state directory: one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Take the lock at once or raise Precondition naming the holder's pid."""
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o711)  # QEMU's user passes through to a pool below it; each file of ours is closed to it
        self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise Precondition(f"state directory {directory} is used by process {holder}; stop it first", reason="STATE_LOCKED") from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go; the file stays."""
        os.close(self._descriptor)


class Database:
    """Tables in one SQLite file."""

    def __init__(self, path: Path) -> None:
        """Open or create the file and bring its schema up to date. Raises as `write`, and Precondition (SCHEMA_NEWER)."""
        self.path = path
        with _translated(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite gives its side files the same mode
            self._engine = _engine(path)
            migrate(self._engine)
        os.chmod(path, 0o600)  # noqa: PTH101  # one call style for descriptors and paths in this module
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self.commits = 0
        self._writer = threading.Thread(target=self._write, name="database-writer", daemon=True)
        self._writer.start()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Run `work` in the next commit; the future resolves when that commit is durable."""
        future: Future[T] = Future()
        with self._gate:
            if not self._closed:
                self._jobs.put((work, future))
                return future
        future.set_exception(Unreachable("the database is closed", reason="STOPPING"))
        return future

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in the next commit and wait until it is durable, however long: a commit that was given up could still happen.

        Raises OutOfSpace (STATE_FULL), Precondition (STATE_UNWRITABLE), DataLoss, Unreachable (closed).
        """
        return self.submit(work).result()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees the last commit."""
        with _translated(self.path), self._engine.connect() as connection:
            yield connection

    def instance(self) -> str:
        """The id of this gateway, drawn when the database was made."""
        with self.read() as connection:
            found = connection.scalar(select(tables.meta.c.value).where(tables.meta.c.key == "instance"))
        if found:
            return str(found)
        drawn = str(uuid.uuid4())
        self.set_instance(drawn)
        return drawn

    def set_instance(self, value: str) -> None:
        """Set the id of this gateway."""
        row = insert(tables.meta).values(key="instance", value=value)
        statement = row.on_conflict_do_update(index_elements=["key"], set_={"value": value})
        self.write(lambda connection: connection.execute(statement))

    def close(self) -> None:
        """Finish what is queued, then close."""
        with self._gate:
            self._closed = True
            self._jobs.put(None)
        self._writer.join(30.0)
        self._engine.dispose()

    def _write(self) -> None:
        stop = False
        while not stop:
            batch, stop = self._gather()
            if batch:
                self._commit(batch)

    def _gather(self) -> tuple[list[_Job], bool]:
        first = self._jobs.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < _GROUP:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _commit(self, batch: list[_Job]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with _translated(self.path), self._engine.begin() as connection:
                for work, future in batch:
                    answers.append((future, *self._attempt(connection, work, alone=len(batch) == 1)))
        except VolgateError as error:
            _log.error("commit failed", error=error.message, waiting=len(batch))
            answers = [(future, None, error) for _, future in batch]
        except Exception as error:  # noqa: BLE001  # handed to every caller that waits for this commit; the writer must live on
            answers = [(future, None, error) for _, future in batch]
        self.commits += 1  # before anybody learns of the commit: what was read under an earlier count may be older than it
        for future, value, failure in answers:
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)

    @staticmethod
    def _attempt(connection: Connection, work: Callable[[Connection], Any], *, alone: bool) -> tuple[Any, BaseException | None]:
        """Run one job; in a group it has a savepoint of its own, so that its failure is its own."""
        if alone:
            return work(connection), None
        try:
            with connection.begin_nested():
                return work(connection), None
        except DBAPIError:
            raise
        except Exception as error:  # noqa: BLE001  # handed to the caller of this one job
            return None, error


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
