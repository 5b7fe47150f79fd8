"""The journal: every mutation, from before its first effect to its recorded answer. Each function runs inside a commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, literal_column, select, update

from volgate.store.records import OperationRecord, OperationState, StepRecord
from volgate.store.tables import operation

__all__ = ["begin", "by_request_id", "find", "note", "page", "prune", "settle", "unfinished", "unfollowed"]

_FINAL = [state.value for state in OperationState if state.final]
_steps = msgspec.json.Decoder(tuple[StepRecord, ...])
_COLUMNS = tuple(operation.c.keys())
# statements of every mutation are built once: building one costs as much as running it
_BEGIN = insert(operation)
_SETTLE = update(operation).where(operation.c.id == bindparam("of"))
_BY_REQUEST = (
    select(operation)
    .where(operation.c.request_id == bindparam("of"), operation.c.principal == bindparam("by"))
    .where(operation.c.request_id != literal_column("''"))  # or the index, which has no others, is not used
    .order_by(operation.c.created_at.desc())
    .limit(1)
)


def begin(connection: Connection, record: OperationRecord) -> None:
    """Write a new operation."""
    connection.execute(_BEGIN, _values(record))


def settle(connection: Connection, record: OperationRecord) -> None:
    """Overwrite an operation with its present state."""
    values = _values(record)
    connection.execute(_SETTLE, values | {"of": values.pop("id")})


def note(connection: Connection, record: OperationRecord) -> None:
    """Write the facts, steps and state that an operation has reached."""
    changed = {"facts": record.facts, "state": record.state.value, "uid": record.uid, "steps": msgspec.json.encode(record.steps)}
    connection.execute(_SETTLE, changed | {"of": record.id})


def find(connection: Connection, identifier: str) -> OperationRecord | None:
    """Read one."""
    row = connection.execute(select(operation).where(operation.c.id == identifier)).first()
    return _record(row) if row else None


def by_request_id(connection: Connection, principal: str, request_id: str) -> OperationRecord | None:
    """The newest operation of a caller's request id; the same id of another caller is another one."""
    row = connection.execute(_BY_REQUEST, {"of": request_id, "by": principal}).first()
    return _record(row) if row else None


def unfinished(connection: Connection) -> list[OperationRecord]:
    """Every operation that has not ended, oldest first: what a dead process left."""
    rows = connection.execute(select(operation).where(operation.c.state.not_in(_FINAL)).order_by(operation.c.created_at, operation.c.id))
    return [_record(row) for row in rows]


def page(
    connection: Connection, before: tuple[float, str] | None, limit: int, *, only_unfinished: bool, principal: str = ""
) -> list[OperationRecord]:
    """A page, newest first, of one principal if named; `before` is the created_at and id of the last row seen."""
    query = select(operation).order_by(operation.c.created_at.desc(), operation.c.id.desc()).limit(limit)
    if before:
        at, identifier = before
        query = query.where((operation.c.created_at < at) | ((operation.c.created_at == at) & (operation.c.id < identifier)))
    if only_unfinished:
        query = query.where(operation.c.state.not_in(_FINAL))
    if principal:
        query = query.where(operation.c.principal == principal)
    return [_record(row) for row in connection.execute(query)]


def unfollowed(connection: Connection, methods: Sequence[str], follower: str, since: float) -> set[str]:
    """Targets of which an operation of `methods` was done after `since` (UTC seconds), and no `follower` begun since then."""
    done, begun = (
        select(operation.c.target, func.max(time).label("at")).where(which, time >= since).group_by(operation.c.target).subquery()
        for time, which in (
            (operation.c.finished_at, operation.c.method.in_(methods) & (operation.c.state == OperationState.DONE.value)),
            (operation.c.created_at, operation.c.method == follower),
        )
    )
    query = select(done.c.target).outerjoin(begun, begun.c.target == done.c.target)
    return set(connection.execute(query.where(func.coalesce(begun.c.at, 0.0) < done.c.at)).scalars())


def prune(connection: Connection, older_than: float) -> int:
    """Forget operations that ended before a time; return how many."""
    return connection.execute(delete(operation).where(operation.c.state.in_(_FINAL), operation.c.finished_at < older_than)).rowcount


def _values(record: OperationRecord) -> dict[str, Any]:
    values = {column: getattr(record, column) for column in _COLUMNS}
    values["state"] = record.state.value
    values["steps"] = msgspec.json.encode(record.steps)
    return values


def _record(row: Row[Any]) -> OperationRecord:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it begins with an underscore
    values["state"] = OperationState(values["state"])
    values["steps"] = _steps.decode(values["steps"])
    return OperationRecord(**values)
