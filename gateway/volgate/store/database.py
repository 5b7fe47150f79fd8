"""The database: written by one thread of a process that commits for everybody in it, read beside that.

Where its tables are is the matter of a place: `sqlite.py` or `postgres.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from volgate.errors import Precondition, Unreachable, VolgateError
from volgate.store import tables
from volgate.store.sqlite import Sqlite
from volgate.store.upserts import Upsert

__all__ = ["Commit", "Database", "Place", "StateLock"]

T = TypeVar("T")
Commit = Connection
"""What a change is given inside a commit; callers pass it on to the functions of this package and nothing else."""
_Work = Callable[[Connection], Any]
_Job = tuple[_Work, "Future[Any]"]
_Answer = tuple[Any, BaseException | None]
_GROUP = 64
_PUT = Upsert(tables.meta, ["key"], ["value"])
_KEEP = Upsert(tables.meta, ["key"])
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


class Place(Protocol):
    """Where tables are. `owner`: the id of this controller there, "" where there is but one process."""

    owner: str
    patience: float | None

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one commit; it may run twice if the first run is known to have left nothing."""

    def read(self) -> contextlib.AbstractContextManager[Connection]:
        """A connection that sees the last commit."""

    def close(self) -> None:
        """Let go of the place."""


class Database:
    """Tables in one place."""

    def __init__(self, place: Place | Path) -> None:
        """Take an open place, or open or create a SQLite file. Raises as `write`, and Precondition (SCHEMA_NEWER)."""
        self.place: Place = Sqlite(place) if isinstance(place, Path) else place
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._commits = 0
        self._looks = itertools.count(1)
        self._writer = threading.Thread(target=self._write, name="database-writer", daemon=True)
        self._writer.start()

    @property
    def owner(self) -> str:
        """The id of this controller among those that share the database; "" if nobody does."""
        return self.place.owner

    @property
    def shared(self) -> bool:
        """Whether other controllers write too."""
        return bool(self.place.owner)

    @property
    def commits(self) -> int:
        """While it stands still, so does the database; where others write it never does."""
        return next(self._looks) if self.shared else self._commits

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Run `work` in the next commit, perhaps again if it was undone; the future resolves when that commit is durable."""
        future: Future[T] = Future()
        with self._gate:
            if not self._closed:
                self._jobs.put((work, future))
                return future
        future.set_exception(Unreachable("the database is closed", reason="STOPPING"))
        return future

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in the next commit and wait until it is durable, however long: a commit that was given up could still happen.

        Only one that has not begun is given up, after the place's patience. Raises OutOfSpace (STATE_FULL), Precondition
        (STATE_UNWRITABLE), DataLoss, Unreachable (closed, DATABASE_DOWN, TAKEN_OVER).
        """
        future = self.submit(work)
        try:
            return future.result(self.place.patience)
        except FutureTimeoutError:
            if not future.cancel():
                return future.result()
            told = "the database has not come to this change in time; nothing was changed: repeat the call when it serves again"
            raise Unreachable(told, reason="DATABASE_DOWN", retry_after=2.0) from None

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees the last commit."""
        with self.place.read() as connection:
            yield connection

    def instance(self, wanted: str = "") -> str:
        """The id of this gateway: what the database has, else `wanted`, else one that is drawn now."""
        row = {"key": "instance", "value": wanted or str(uuid.uuid4())}
        self.write(lambda connection: _KEEP.run(connection, row))
        with self.read() as connection:
            return str(connection.scalar(select(tables.meta.c.value).where(tables.meta.c.key == "instance")))

    def set_instance(self, value: str) -> None:
        """Set the id of this gateway."""
        self.write(lambda connection: _PUT.run(connection, {"key": "instance", "value": value}))

    def close(self) -> None:
        """Finish what is queued, then close."""
        with self._gate:
            self._closed = True
            self._jobs.put(None)
        self._writer.join(30.0)
        self.place.close()

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
        batch = [(work, future) for work, future in batch if future.set_running_or_notify_cancel()]
        answers: list[_Answer] = []
        try:
            answers = self._together([work for work, _ in batch]) if batch else []
        except VolgateError as error:
            _log.error("commit failed", error=error.message, waiting=len(batch))
            answers = [(None, error)] * len(batch)
        except Exception as error:  # noqa: BLE001  # handed to every caller that waits for this commit; the writer must live on
            answers = [(None, error)] * len(batch)
        self._commits += 1  # before anybody learns of the commit: what was read under an earlier count may be older than it
        for (_, future), (value, failure) in zip(batch, answers, strict=True):
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)

    def _together(self, works: list[_Work]) -> list[_Answer]:
        """Run jobs in one commit; after a failure of one of several again, each in a savepoint: they cost as much as most jobs."""
        if len(works) == 1:
            return self.place.transaction(lambda connection: [(works[0](connection), None)])
        try:
            return self.place.transaction(lambda connection: [_plain(connection, work) for work in works])
        except _Failed:
            return self.place.transaction(lambda connection: [_kept_apart(connection, work) for work in works])


class _Failed(Exception):
    """A job of a group failed."""


def _plain(connection: Connection, work: _Work) -> _Answer:
    try:
        return work(connection), None
    except DBAPIError:
        raise
    except Exception as error:  # whatever it was, it is met again by the second run, which hands it to its caller
        raise _Failed from error


def _kept_apart(connection: Connection, work: _Work) -> _Answer:
    try:
        with connection.begin_nested():
            return work(connection), None
    except DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001  # handed to the caller of this one job
        return None, error
