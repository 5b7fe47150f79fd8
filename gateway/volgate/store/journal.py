"""The journal: every mutation, from before its first effect to its recorded answer. Each function runs inside a commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, literal_column, select, update

from volgate.errors import Unreachable
from volgate.store.records import OperationRecord, OperationState, StepRecord
from volgate.store.tables import controller, operation, turn

__all__ = [
    "ask_to_cancel",
    "begin",
    "by_request_id",
    "cancelled",
    "claim",
    "find",
    "note",
    "orphans",
    "page",
    "prune",
    "require_ours",
    "running_like",
    "settle",
    "several",
    "unfinished",
    "unfollowed",
]

_FINAL = [state.value for state in OperationState if state.final]
_steps = msgspec.json.Decoder(tuple[StepRecord, ...])
_COLUMNS = tuple(name for name in operation.c.keys() if name != "cancelling")  # noqa: SIM118  # a collection of columns is no dict
# statements of every mutation are built once: building one costs as much as running it
_BEGIN = insert(operation)
_OURS = (operation.c.id == bindparam("of")) & (operation.c.owner == bindparam("owned_by")) & (operation.c.claim == bindparam("claimed"))
_SETTLE = update(operation).where(_OURS)
_IS_OURS = select(operation.c.id).where(_OURS)
_LIKE = (
    select(operation)
    .join(turn, turn.c.member == operation.c.id)
    .where(turn.c.key == bindparam("at"), operation.c.principal == bindparam("by"), operation.c.body_hash == bindparam("body"))
    .where(operation.c.state.not_in(_FINAL))
    .order_by(turn.c.ordinal)
    .limit(1)
)
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
    """Overwrite an operation with its present state. Raises Unreachable (TAKEN_OVER)."""
    values = _values(record)
    _change(connection, record, {key: value for key, value in values.items() if key not in ("id", "owner", "claim")})


def note(connection: Connection, record: OperationRecord) -> None:
    """Write the facts, steps, progress and state that an operation has reached. Raises Unreachable (TAKEN_OVER)."""
    steps = msgspec.json.encode(record.steps)
    reached = {"facts": record.facts, "state": record.state.value, "uid": record.uid, "steps": steps, "progress": record.progress}
    _change(connection, record, reached)


def _change(connection: Connection, record: OperationRecord, values: dict[str, Any]) -> None:
    if connection.execute(_SETTLE, values | _claimed(record)).rowcount != 1:
        raise _taken(record)


def require_ours(connection: Connection, record: OperationRecord) -> None:
    """Raise Unreachable (TAKEN_OVER) unless an operation still has this owner and claim: for what is written on its behalf."""
    if connection.scalar(_IS_OURS, _claimed(record)) is None:
        raise _taken(record)


def _claimed(record: OperationRecord) -> dict[str, Any]:
    return {"of": record.id, "owned_by": record.owner, "claimed": record.claim}


def _taken(record: OperationRecord) -> Unreachable:
    told = f"operations/{record.id} is gone from the journal, or another controller took it over; repeat the call to learn its outcome"
    return Unreachable(told, reason="TAKEN_OVER", operation=f"operations/{record.id}")


def running_like(connection: Connection, key: str, principal: str, body: str) -> OperationRecord | None:
    """The first unfinished operation of a caller with the same body, at the object `key` that it locks, wherever it runs."""
    row = connection.execute(_LIKE, {"at": key, "by": principal, "body": body}).first()
    return _record(row) if row else None


def orphans(connection: Connection) -> list[OperationRecord]:
    """Unfinished operations of controllers that are gone, oldest first."""
    alive = select(controller.c.id).where(controller.c.gone == 0)
    left = select(operation).where(operation.c.state.not_in(_FINAL), operation.c.owner.not_in(alive))
    return [_record(row) for row in connection.execute(left.order_by(operation.c.created_at, operation.c.id))]


def claim(connection: Connection, record: OperationRecord, owner: str) -> bool:
    """Make `owner` work on an operation, unless somebody else took it since it was read."""
    changed = update(operation).where(_OURS).values(owner=owner, claim=operation.c.claim + 1)
    return connection.execute(changed, _claimed(record)).rowcount == 1


def ask_to_cancel(connection: Connection, identifier: str) -> None:
    """Note that an operation shall stop; its owner looks."""
    connection.execute(update(operation).where(operation.c.id == identifier, operation.c.state.not_in(_FINAL)).values(cancelling=1))


def cancelled(connection: Connection, owner: str) -> list[str]:
    """The unfinished operations of an owner that somebody asked to stop."""
    wanted = (operation.c.owner == owner) & (operation.c.cancelling == 1) & operation.c.state.not_in(_FINAL)
    return list(connection.scalars(select(operation.c.id).where(wanted)))


def several(connection: Connection, identifiers: Sequence[str]) -> list[OperationRecord]:
    """Read those that are there."""
    return [_record(row) for row in connection.execute(select(operation).where(operation.c.id.in_(identifiers)))]


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
    values["error_message"] = record.error_message.replace("\0", "")  # PostgreSQL takes no such character
    return values


def _record(row: Row[Any]) -> OperationRecord:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it begins with an underscore
    values["state"] = OperationState(values["state"])
    values["steps"] = _steps.decode(values["steps"])
    del values["cancelling"]
    return OperationRecord(**values)
