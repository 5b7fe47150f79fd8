"""What a backup must forget before it is served: the world went on since it was taken."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from volgate.errors import DataLoss

__all__ = ["disarm"]

_CANCEL = """
update operation set state = 'cancelled', error_reason = 'CANCELLED', finished_at = ?,
error_message = 'the database was restored from a backup: look what came of it, and repeat the call if it is still wanted'
where state not in ('done', 'failed', 'cancelled')
"""


def disarm(path: Path) -> int:
    """Cancel what was unfinished when the backup was taken, for it ended since and must not run again; return how many.

    Its attachments are compared with libvirt before they are believed. Raises DataLoss.
    """
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            cancelled = connection.execute(_CANCEL, (time.time(),)).rowcount
            connection.execute("delete from meta where key like 'attachments/trusted%'")
    except sqlite3.Error as error:
        raise DataLoss(f"{path} is no whole database of volgate: {error}; take another backup") from error
    return cancelled
