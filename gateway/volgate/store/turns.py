"""Whose turn it is at an object, across controllers: a row for each object that an operation or a long read wants, in order of commit.

Each function runs inside a commit or a read, on PostgreSQL. Writers are serial there, so the rows of one commit all come before those
of the next, and no two members can wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

__all__ = ["clear", "drop_holds", "enter", "enter_if_free", "first", "is_free", "leave", "members", "move", "ready", "tell"]

_ENTER = text(
    "WITH mine AS (INSERT INTO turn (key, member, owner) SELECT unnest(CAST(:keys AS varchar[])), :member, :owner RETURNING key) "
    "SELECT NOT EXISTS (SELECT 1 FROM turn WHERE key IN (SELECT key FROM mine))"  # which were there before this statement
)
_ENTER_IF_FREE = text(
    "INSERT INTO turn (key, member, owner) SELECT CAST(:key AS varchar), CAST(:member AS varchar), CAST(:owner AS varchar) "
    "WHERE NOT EXISTS (SELECT 1 FROM turn WHERE key = :key)"
)
_FIRST = text(
    "SELECT count(*) > 0 AND NOT bool_or(EXISTS (SELECT 1 FROM turn e WHERE e.key = t.key AND e.ordinal < t.ordinal)) "
    "FROM turn t WHERE member = :member"
)
_READY = text(
    "SELECT member FROM turn t WHERE owner = CAST(:owner AS varchar) OR :owner = '' "
    "GROUP BY member HAVING NOT bool_or(EXISTS (SELECT 1 FROM turn e WHERE e.key = t.key AND e.ordinal < t.ordinal))"
)
_LEAVE = text(
    "WITH gone AS (DELETE FROM turn WHERE member = :member RETURNING key) "
    "SELECT DISTINCT ON (t.key) t.owner, t.member FROM turn t JOIN gone ON gone.key = t.key WHERE t.member <> :member "
    "ORDER BY t.key, t.ordinal"
)
_FREE = text("SELECT NOT EXISTS (SELECT 1 FROM turn WHERE key = :key)")
_CLEAR = text("DELETE FROM turn WHERE owner = :owner AND member NOT IN (SELECT id FROM operation)")


def enter(connection: Connection, member: str, keys: Sequence[str], owner: str) -> bool:
    """Queue a member at each of its objects; say whether it is first at all of them."""
    return bool(connection.scalar(_ENTER, {"keys": list(keys), "member": member, "owner": owner}))


def enter_if_free(connection: Connection, member: str, key: str, owner: str) -> bool:
    """Queue a member at an object where nobody is; say whether that was so."""
    return connection.execute(_ENTER_IF_FREE, {"key": key, "member": member, "owner": owner}).rowcount == 1


def is_free(connection: Connection, key: str) -> bool:
    """Whether nobody is at an object."""
    return bool(connection.scalar(_FREE, {"key": key}))


def first(connection: Connection, member: str) -> bool:
    """Whether a member is queued, and first at each of its objects."""
    return bool(connection.scalar(_FIRST, {"member": member}))


def ready(connection: Connection, owner: str) -> set[str]:
    """The members of an owner, or of everybody (""), that are first at each of their objects."""
    return set(connection.scalars(_READY, {"owner": owner}))


def members(connection: Connection, owner: str) -> set[str]:
    """All members of an owner."""
    return set(connection.scalars(text("SELECT member FROM turn WHERE owner = :owner"), {"owner": owner}))


def leave(connection: Connection, member: str) -> list[tuple[str, str]]:
    """Take a member out; return owner and member of those that are first now at an object where it was."""
    return [(owner, other) for owner, other in connection.execute(_LEAVE, {"member": member})]


def drop_holds(connection: Connection, gone: Sequence[str]) -> None:
    """Take long reads out of which nobody knows any more; the place of an operation goes with the operation."""
    connection.execute(
        text("DELETE FROM turn WHERE member = ANY(:gone) AND member NOT IN (SELECT id FROM operation)"), {"gone": list(gone)}
    )


def move(connection: Connection, member: str, keys: Sequence[str], owner: str) -> None:
    """Give a member's places to the owner that took it over; one that never had any, for it comes from SQLite, gets the last ones."""
    if not connection.execute(text("UPDATE turn SET owner = :owner WHERE member = :member"), {"owner": owner, "member": member}).rowcount:
        enter(connection, member, keys, owner)


def clear(connection: Connection, owner: str) -> None:
    """Take the long reads of an owner out: they ended with it."""
    connection.execute(_CLEAR, {"owner": owner})


def tell(connection: Connection, *words: str) -> None:
    """Tell all controllers, once this commit is done."""
    connection.execute(text("SELECT pg_notify('volgate', :said)"), {"said": " ".join(words)})
