"""Who works on the shared database: a row for each controller, with a heartbeat by the database's clock. Run inside a commit or a read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update
from sqlalchemy import Float as FloatType

from volgate.store.records import OperationState
from volgate.store.tables import controller, operation

__all__ = [
    "ControllerRecord",
    "Identity",
    "all_of",
    "bury",
    "leave",
    "living",
    "now",
    "register",
    "serve_pools",
    "served_pools",
    "stamp",
    "stamped",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """One process: who it is, and by what another on the same machine sees that it is gone.

    `boot` and `space` are the kernel's ids of this boot and of the processes' namespace, `started` its start in clock ticks since
    the boot, `locks` the folder of its pools' lock files.
    """

    id: str
    name: str
    machine: str
    boot: str
    space: str
    pid: int
    started: int
    version: str
    locks: str


@dataclass(frozen=True, slots=True)
class ControllerRecord:
    """A controller as it is known; `silent` is how long ago it was heard of, seconds; `gone`: others have taken over."""

    identity: Identity
    silent: float
    gone: bool
    heartbeat: float


_FIELDS = tuple(Identity.__dataclass_fields__)
_FINAL = [state.value for state in OperationState if state.final]
_LISTED = " "  # no pool's name has one


def now() -> ColumnElement[float]:
    """The database's clock, UTC seconds."""
    return func.extract("epoch", func.clock_timestamp()).cast(FloatType)


def register(connection: Connection, identity: Identity) -> None:
    """Write the row of a new controller."""
    values = {name: getattr(identity, name) for name in _FIELDS}
    connection.execute(insert(controller).values(**values, pools="", commits=0, heartbeat=now(), gone=0))


def stamp(identifier: str, number: int) -> str:
    """The words that note a controller's commit, and with it that it lives; they find no row once others took over."""
    if not identifier.isalnum():
        raise ValueError("an id of hex digits is wanted")
    return (
        f"UPDATE controller SET commits = {number:d}, heartbeat = extract(epoch FROM clock_timestamp()) "  # noqa: S608  # both are checked
        f"WHERE id = '{identifier}' AND gone = 0"
    )


def stamped(connection: Connection, identifier: str) -> int:
    """The number of a controller's last commit that is in; -1 if the controller has no row."""
    found = connection.scalar(select(controller.c.commits).where(controller.c.id == identifier))
    return -1 if found is None else int(found)


def all_of(connection: Connection) -> list[ControllerRecord]:
    """Every controller, by name."""
    rows = connection.execute(
        select(controller, (now() - controller.c.heartbeat).label("silent")).order_by(controller.c.name, controller.c.id)
    )
    return [
        ControllerRecord(Identity(*(getattr(row, name) for name in _FIELDS)), float(row.silent), bool(row.gone), row.heartbeat)
        for row in rows
    ]


def living(connection: Connection) -> set[str]:
    """The ids of those that nobody took over."""
    return set(connection.scalars(select(controller.c.id).where(controller.c.gone == 0)))


def bury(connection: Connection, identifier: str, heartbeat: float | None = None) -> bool:
    """Let a controller write nothing any more, unless it was heard of since `heartbeat`; say whether that was done now."""
    found = update(controller).where(controller.c.id == identifier, controller.c.gone == 0).values(gone=1)
    if heartbeat is not None:
        found = found.where(controller.c.heartbeat == heartbeat)
    return connection.execute(found).rowcount == 1


def leave(connection: Connection, identifier: str) -> None:
    """Remove a row, if it owns no operation any more: the controller ended in order, or nothing of a dead one is left."""
    owned = select(operation.c.id).where(operation.c.owner == identifier, operation.c.state.not_in(_FINAL)).exists()
    connection.execute(delete(controller).where(controller.c.id == identifier, ~owned))


def serve_pools(connection: Connection, identifier: str, pools: Iterable[str]) -> None:
    """Note the pools that a controller serves."""
    connection.execute(update(controller).where(controller.c.id == identifier).values(pools=_LISTED.join(sorted(pools))))


def served_pools(connection: Connection, *, but: str) -> set[str]:
    """The pools that other living controllers than `but` serve."""
    found = connection.scalars(select(controller.c.pools).where(controller.c.gone == 0, controller.c.id != but))
    return {name for names in found for name in names.split(_LISTED) if name}
