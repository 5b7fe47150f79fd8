"""What an operator said of pools: nobody else knows it, so it must outlive the process. Each function runs inside a commit or a read."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from volgate.store.tables import meta

__all__ = ["claim", "drain", "draining", "forget", "home", "quarantine", "quarantines"]

_DRAINS = "drain/"  # and the pool
_QUARANTINES = "quarantine/"  # and the pool; the value is why
_HOMES = "home/"  # and the pool; the value is the machine whose storage it is, and the controller that said so


def drain(connection: Connection, pool: str, *, drains: bool) -> None:
    """Note that a pool drains, or that it takes volumes again."""
    _put(connection, _DRAINS + pool, "1" if drains else "")


def draining(connection: Connection) -> set[str]:
    """Names of the pools that drain, configured now or not."""
    return set(_found(connection, _DRAINS))


def quarantine(connection: Connection, pool: str, reason: str) -> None:
    """Note why nothing is to be done in a pool, or with "" that it is served again."""
    _put(connection, _QUARANTINES + pool, reason)


def quarantines(connection: Connection) -> dict[str, str]:
    """The pools in which nothing is to be done, configured now or not, and why."""
    return _found(connection, _QUARANTINES)


def claim(connection: Connection, pool: str, owner: str) -> str:
    """Note whose a pool is, unless it is somebody's; return whose it is."""
    found = home(connection, pool)
    if not found:
        _put(connection, _HOMES + pool, owner)
    return found or owner


def home(connection: Connection, pool: str) -> str:
    """Whose a pool is, "" if nobody said so yet."""
    return str(connection.scalar(select(meta.c.value).where(meta.c.key == _HOMES + pool)) or "")


def forget(connection: Connection, pool: str) -> None:
    """Take back what was said of a pool that is gone."""
    connection.execute(delete(meta).where(meta.c.key.in_((_DRAINS + pool, _QUARANTINES + pool, _HOMES + pool))))


def _put(connection: Connection, key: str, value: str) -> None:
    connection.execute(delete(meta).where(meta.c.key == key))
    if value:
        connection.execute(insert(meta).values(key=key, value=value))


def _found(connection: Connection, prefix: str) -> dict[str, str]:
    rows = connection.execute(select(meta.c.key, meta.c.value).where(meta.c.key.startswith(prefix)))
    return {key.removeprefix(prefix): value for key, value in rows}
