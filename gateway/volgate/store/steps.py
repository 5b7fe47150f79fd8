"""The journal of a host's own steps: a SQLite file in its state directory. A call that returned is durable. Thread-safe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from volgate.errors import Precondition

__all__ = ["Step", "Steps"]

_VERSION = "1"
_metadata = MetaData()
_meta = Table("meta", _metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))
_step = Table(
    "step",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("alias", String, nullable=False),
    Column("domain", String, nullable=False),
    Column("source", String, nullable=False),
    Column("begun_at", Float, nullable=False),
    Column("outcome", String, nullable=False),
    Column("ended_at", Float, nullable=False),
)
Index("step_by_alias", _step.c.alias)
Index("step_by_end", _step.c.ended_at)
_withdrawn = Table("withdrawn", _metadata, Column("alias", String, primary_key=True), Column("at", Float, nullable=False))
_END = update(_step).where(_step.c.id == bindparam("of"))
_ROW = sqlite.insert(_meta)
_SET = _ROW.on_conflict_do_update(index_elements=["key"], set_={"value": _ROW.excluded["value"]})


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `ended_at` 0: it has not ended, or nobody knows how. Times are UTC seconds."""

    id: int
    kind: str
    alias: str
    domain: str
    source: str
    begun_at: float
    outcome: str = ""
    ended_at: float = 0.0


class Steps:
    """Steps begun and ended, aliases that were withdrawn for good, and which gateway the host belongs to."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises Precondition (SCHEMA_NEWER, STATE_UNWRITABLE)."""
        self._path = path
        self._lock = threading.Lock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise _unwritable(path, error) from error
        self._engine = create_engine(f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 30})
        event.listen(self._engine, "connect", _configure)
        with self._commit() as connection:
            _metadata.create_all(connection)
        found = self.get("schema") or _VERSION
        if found != _VERSION:
            raise Precondition(f"{path} has schema {found}, this program knows {_VERSION}: run the newer volgate", reason="SCHEMA_NEWER")
        self.put("schema", _VERSION)

    @contextmanager
    def _commit(self) -> Iterator[Connection]:
        try:
            with self._lock, self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise _unwritable(self._path, error.orig or error) from error

    def begin(self, kind: str, alias: str, domain: str, source: str) -> int:
        """Record a step before its effect; return its number."""
        values = {"kind": kind, "alias": alias, "domain": domain, "source": source, "begun_at": time.time(), "outcome": "", "ended_at": 0.0}
        with self._commit() as connection:
            return int(connection.execute(insert(_step), values).inserted_primary_key[0])  # type: ignore[index]  # an insert of one row has it

    def end(self, number: int, outcome: str) -> None:
        """Record how a step ended."""
        with self._commit() as connection:
            connection.execute(_END, {"of": number, "outcome": outcome, "ended_at": time.time()})

    def unfinished(self) -> list[Step]:
        """The steps that have not ended, oldest first."""
        with self._commit() as connection:
            return [Step(*row) for row in connection.execute(select(_step).where(_step.c.ended_at == 0.0).order_by(_step.c.id))]

    def of_alias(self, alias: str) -> list[Step]:
        """The steps of an alias, oldest first."""
        with self._commit() as connection:
            return [Step(*row) for row in connection.execute(select(_step).where(_step.c.alias == alias).order_by(_step.c.id))]

    def withdraw(self, alias: str, kind: str, domain: str, source: str) -> int:
        """Give an alias up for good and begin the step that takes its disk away, in one commit; return the step's number."""
        values = {"kind": kind, "alias": alias, "domain": domain, "source": source, "begun_at": time.time(), "outcome": "", "ended_at": 0.0}
        with self._commit() as connection:
            connection.execute(sqlite.insert(_withdrawn).values(alias=alias, at=time.time()).on_conflict_do_nothing())
            return int(connection.execute(insert(_step), values).inserted_primary_key[0])  # type: ignore[index]  # as above

    def is_withdrawn(self, alias: str) -> bool:
        """Whether an alias was given up."""
        with self._commit() as connection:
            return connection.scalar(select(_withdrawn.c.alias).where(_withdrawn.c.alias == alias)) is not None

    def prune(self, steps_before: float, withdrawn_before: float) -> None:
        """Forget steps that ended, and withdrawals, that are older."""
        with self._commit() as connection:
            connection.execute(delete(_step).where(_step.c.ended_at > 0.0, _step.c.ended_at < steps_before))
            connection.execute(delete(_withdrawn).where(_withdrawn.c.at < withdrawn_before))

    def get(self, key: str) -> str:
        """A fact; "" for none."""
        with self._commit() as connection:
            return str(connection.scalar(select(_meta.c.value).where(_meta.c.key == key)) or "")

    def put(self, key: str, value: str) -> None:
        """Keep a fact."""
        with self._commit() as connection:
            connection.execute(_SET, {"key": key, "value": value})

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._engine.dispose()


def _configure(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _unwritable(path: Path, error: BaseException) -> Precondition:
    return Precondition(f"{path} cannot be opened or written: {error}; mend the file system, or its owner", reason="STATE_UNWRITABLE")
