"""What a command that died leaves half told: the thin pool has a new device, and nobody noted that it was told of it.

LVM tells it again with its next change, the pool has it already, and from then on LVM changes nothing in that pool. The device is of no
volume yet, for the command that was to make it answered nobody: it is taken away.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from volgate.errors import DeadlineExceeded, Precondition, translate
from volgate_plugins.lvm.command import Commands
from volgate_plugins.lvm.settings import LvmSettings

__all__ = ["mend", "told"]

_LOCKS = "/run/lock/lvm"
_FIELDS = ("lv_name", "lv_uuid", "vg_uuid", "transaction_id", "thin_id", "pool_lv")
_AT = 3  # of the words of a thin pool's status: how many transactions it was told of
_PAUSE = 0.01


def told(commands: Commands, dm_uuid: str, doing: str) -> int:
    """How many of LVM's transactions the thin pool was told of; `dm_uuid` is the pool's."""
    return int(commands.device_mapper(doing, "status", "-u", f"{dm_uuid}-tpool").split()[_AT])


def mend(commands: Commands, settings: LvmSettings, doing: str, device: int) -> None:
    """Take the pool's device of that number away, if it is the one of the transaction that was not noted.

    Raises Precondition (LVM_HALF_MADE: it is another's), and as `Commands.change`.
    """
    rows = commands.report(doing, "lvs", "lv", _FIELDS)
    pool = next(row for row in rows if row["lv_name"] == settings.thin_pool)
    wanted, dm_uuid = int(pool["transaction_id"]), "LVM-" + (pool["vg_uuid"] + pool["lv_uuid"]).replace("-", "")
    mine = [row for row in rows if row["pool_lv"] == settings.thin_pool and row["thin_id"] == str(device)]
    if [row["transaction_id"] for row in mine] != [str(wanted - 1)]:
        where = f"{settings.vg}/{settings.thin_pool}"
        raise Precondition(
            f"{doing}: thin pool {where} has a device {device} that LVM does not know; look at it before anything is done"
            f" (lvs -o+thin_id,transaction_id {settings.vg}; dmsetup status), and have LVM's documentation beside you",
            reason="LVM_HALF_MADE",
        )
    with _alone(settings, doing):  # no command of LVM's tells the pool anything now: what was not noted before stays so
        if told(commands, dm_uuid, doing) == wanted - 1:
            commands.device_mapper(doing, "message", "-u", f"{dm_uuid}-tpool", "0", f"delete {device}")


@contextmanager
def _alone(settings: LvmSettings, doing: str) -> Iterator[None]:
    """Hold LVM's own lock of the group, a file that LVM removes when it lets go. Raises DeadlineExceeded."""
    path, deadline = f"{_LOCKS}/V_{settings.vg}", time.monotonic() + settings.command_seconds
    with translate(doing):
        while (descriptor := _taken(path)) < 0:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{doing}: LVM's lock of {settings.vg} is held for too long; repeat the call")
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            os.close(descriptor)


def _taken(path: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        now, held = os.stat(path), os.fstat(descriptor)  # noqa: PTH116  # one call style for all of them
        if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return -1
