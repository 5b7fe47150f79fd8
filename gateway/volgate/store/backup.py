"""What a backup must forget before it is served: the world went on since it was taken."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, text

from volgate.errors import DataLoss, Precondition
from volgate.store import controllers

__all__ = ["disarm", "disarm_shared"]

_SILENT_SECONDS = 60.0
_CANCEL = """
update operation set state = 'cancelled', error_reason = 'CANCELLED', finished_at = :now,
error_message = 'the database was restored from a backup: look what came of it, and repeat the call if it is still wanted'
where state not in ('done', 'failed', 'cancelled')
"""

_DISTRUST = "delete from meta where key like 'attachments/trusted%'"


def disarm(path: Path) -> int:
    """Cancel what was unfinished when the backup was taken, for it ended since and must not run again; return how many.

    Its attachments are compared with libvirt before they are believed. Raises DataLoss.
    """
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            cancelled = connection.execute(_CANCEL, {"now": time.time()}).rowcount
            connection.execute(_DISTRUST)
    except sqlite3.Error as error:
        raise DataLoss(f"{path} is no whole database of volgate: {error}; take another backup") from error
    return cancelled


def disarm_shared(connection: Connection) -> int:
    """The same in a commit of a PostgreSQL that was restored; its controllers and their turns are forgotten too.

    Raises Precondition while a controller is alive: it would lose what it is at.
    """
    for found in controllers.all_of(connection):
        if not found.gone and found.silent < _SILENT_SECONDS:
            raise Precondition(
                f"controller {found.identity.name} was heard of {found.silent:.0f} s ago: stop every gateway of this database, and "
                f"disarm it {_SILENT_SECONDS:.0f} s after the last one has ended or was backed up"
            )
    cancelled = connection.execute(text(_CANCEL), {"now": time.time()}).rowcount
    for words in (_DISTRUST, "delete from turn", "delete from controller"):
        connection.execute(text(words))
    return cancelled
