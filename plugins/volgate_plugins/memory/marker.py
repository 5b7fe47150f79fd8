"""Whose array this is, and whether one before it ended with volumes: an empty array is no empty pool.

While there are volumes a note lies beside the socket. An array that finds one as it starts has lost what the note tells of.
"""

# the note is a plain file beside a plain path
# ruff: noqa: PTH108, PTH123

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid

import msgspec

from volgate.backend.files import write_durably
from volgate.errors import Precondition

__all__ = ["Marker", "Note", "note_of"]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Which array has volumes, and for whom; `since` is when it got the first, seconds since the epoch."""

    array: str
    instance: str
    pool: str
    since: float


def note_of(socket: str) -> str:
    """Where the note of the array at a socket lies."""
    return f"{socket}.volumes"


_notes = msgspec.json.Decoder(Note)


class Marker:
    """The id of this array, and the gateway instance and pool that it is for."""

    def __init__(self, socket: str) -> None:
        """Draw an id; read the note of the array before, if it left one."""
        self.id = str(uuid.uuid4())
        self.instance = ""
        self.pool = ""
        self._path = note_of(socket)
        self._lock = threading.Lock()
        self._noted = False
        self.lost = self._read()

    def open(self, instance: str, pool: str, *, accept_loss: bool) -> None:
        """Take the array for a pool. Raises Precondition (POOL_FOREIGN, POOL_MARKER_MISSING)."""
        with self._lock:
            if self.instance not in ("", instance):
                raise Precondition(
                    f"the array belongs to the gateway instance {self.instance!r}, this one is {instance!r}; give the pool an array of its"
                    " own",
                    reason="POOL_FOREIGN",
                )
            if self.pool not in ("", pool):
                raise Precondition(
                    f"the array belongs to pool {self.pool!r}, this is {pool!r}; give the pool an array of its own", reason="POOL_FOREIGN"
                )
            if self.lost and accept_loss:
                self._forget()
            self.require_kept()
            self.instance, self.pool = instance, pool

    def require_kept(self) -> None:
        """Raise Precondition if an array before this one ended with volumes and nobody has said that this is all right."""
        if self.lost:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.lost.since))
            raise Precondition(
                f"the array {self.lost.array}, which had volumes of pool {self.lost.pool} since {when} UTC, ended and took them with it;"
                f" the one at {self._path.removesuffix('.volumes')} now is new and empty; to go on without them, run"
                " `python -m volgate_plugins.memory.control --socket SOCKET accept-loss`, or set accept_loss",
                reason="POOL_MARKER_MISSING",
            )

    def accept_loss(self) -> bool:
        """Go on without what was lost; say whether anything was."""
        with self._lock:
            lost = self.lost is not None
            self._forget()
            return lost

    def occupied(self, volumes: int) -> None:
        """Write the note before the first volume appears, remove it after the last went. Raises OSError."""
        if volumes and not self._noted:
            note = Note(array=self.id, instance=self.instance, pool=self.pool, since=time.time())
            write_durably(self._path, msgspec.json.encode(note) + b"\n")
        elif not volumes:
            self._remove()
        self._noted = bool(volumes)

    def _forget(self) -> None:
        self.lost = None
        if not self._noted:
            self._remove()

    def _read(self) -> Note | None:
        try:
            with open(self._path, "rb") as file:
                return _notes.decode(file.read())
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError:
            return Note(array="unknown", instance="", pool="unknown", since=0.0)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
