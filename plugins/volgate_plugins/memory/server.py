"""The array's end of its connections: one thread each, one call at a time, faults around it; a call that nobody waits for is dropped."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec

from volgate.backend import PoolCheck, VolumeId
from volgate.connection import LocalFile
from volgate.errors import InvalidRequest, Precondition, VolgateError, translate
from volgate.model import Health, Path
from volgate_plugins.memory.clients import Clients
from volgate_plugins.memory.comparing import Comparing
from volgate_plugins.memory.faults import VERBS, Fault, Faults, Lose
from volgate_plugins.memory.filling import Filling
from volgate_plugins.memory.frames import Answer, Crash, Failure, Gone, Reply, Request, decode, is_open, receive, send
from volgate_plugins.memory.marker import Marker
from volgate_plugins.memory.media import Media
from volgate_plugins.memory.ports import Port, Ports
from volgate_plugins.memory.snapshots import Snapshots
from volgate_plugins.memory.table import Limits, Table
from volgate_plugins.memory.volumes import Volumes

__all__ = ["Opened", "Server", "Status"]

_FREE = (
    "open_pool",
    "hello",
    "add_fault",
    "clear_faults",
    "release",
    "fail_port",
    "restore_port",
    "make_foreign",
    "open_volume",
    "accept_loss",
    "stop",
)
_UNSTRUCK = ("begin_fill", "abandon_fill")


class Dropped(Exception):
    """Nobody waits for the call any more: nothing of it happens."""


class Opened(msgspec.Struct, frozen=True):
    """What a gateway learns when it opens its pool on the array."""

    array: str
    root: str
    limits: Limits
    shares: bool


class Status(msgspec.Struct, frozen=True):
    """What there is to know of an array; `owner` is the process whose end is its end (0: none)."""

    array: str
    pid: int
    owner: int
    instance: str
    pool: str
    root: str
    volumes: int
    lost: bool
    ports: list[Port]
    faults: list[Fault]
    fenced: list[str]


@dataclass(frozen=True, slots=True)
class _Verb:
    function: Callable[..., Any]
    parameters: dict[str, Any]


class Server:
    """One array: its state, and what is asked of it."""

    def __init__(self, path: str, media: Media, limits: Limits, *, owner: int, stop: Callable[[], None]) -> None:
        """Serve for the socket at `path`; `stop` ends the program."""
        self._caller = threading.local()
        self._owner = owner
        self._media = media
        self._marker = Marker(path)
        self._faults = Faults()
        self._ports = Ports()
        self._table = Table(media, limits, wanted=self._wanted, occupied=self._marker.occupied)
        self._volumes = Volumes(self._table)
        self._clients = Clients(self._table)
        self._end = stop
        table = self._table
        places = (self, self._volumes, Snapshots(table), Filling(table, self._volumes), Comparing(table), self._clients)
        self._verbs = {name: _verb(next(place for place in places if hasattr(place, name)), name) for name in {*VERBS, *_UNSTRUCK, *_FREE}}

    def talk(self, end: socket.socket) -> None:
        """Answer one connection until it ends."""
        self._caller.end, self._caller.scratch, self._caller.last = end, [], False
        with end, contextlib.suppress(Gone, Dropped, OSError, Lose, msgspec.MsgspecError):
            try:
                while not self._caller.last:
                    send(end, self._reply(receive(end, Request)))
                self._end()
            finally:
                for scratch in self._caller.scratch:
                    Filling(self._table, self._volumes).abandon_fill(scratch)

    def _reply(self, request: Request) -> Reply:
        verb = self._verbs.get(request.verb)
        try:
            if verb is None:
                raise InvalidRequest(f"the array knows no verb {request.verb!r}")
            if request.verb not in _FREE:
                self._require_meant(request.array)
            if request.arguments.keys() != verb.parameters.keys():
                raise InvalidRequest(f"{request.verb}: its arguments are {', '.join(verb.parameters) or 'none'}")
            arguments = {name: decode(raw, verb.parameters[name]) for name, raw in request.arguments.items()}
            strike = self._faults.strike(request.verb, self._wanted)
            strike.before()
            try:
                value = verb.function(**arguments)
            except VolgateError:
                strike.after()
                raise
            if request.verb == "begin_fill":
                self._caller.scratch.append(value[0])
            strike.after()
            return Answer(msgspec.Raw(msgspec.msgpack.encode(value)))
        except VolgateError as error:
            return Failure.of(error)
        except msgspec.MsgspecError as error:
            return Failure.of(InvalidRequest(f"{request.verb}: {error}"))
        except Lose as lost:
            if lost.crash:
                return Crash()
            raise

    def _wanted(self) -> None:
        """Raise Dropped if the caller of this thread is gone."""
        if not is_open(self._caller.end):
            raise Dropped

    def _require_meant(self, array: str) -> None:
        self._marker.require_kept()
        if array != self._marker.id:
            raise Precondition(
                f"this is the array {self._marker.id}, the pool was opened on {array or 'none'}, which ended",
                reason="POOL_MARKER_MISSING",
            )

    # -- verbs of the array itself

    def hello(self) -> Status:
        """Tell what there is to know."""
        marker = self._marker
        return Status(
            array=marker.id,
            pid=os.getpid(),
            owner=self._owner,
            instance=marker.instance,
            pool=marker.pool,
            root=self._media.root,
            volumes=len(self._table),
            lost=marker.lost is not None,
            ports=self._ports.listed(),
            faults=self._faults.listed(),
            fenced=self._clients.refused(),
        )

    def open_pool(self, instance: str, pool: str, accept_loss: bool, faults: tuple[Fault, ...]) -> Opened:
        """Be the array of a pool."""
        self._marker.open(instance, pool, accept_loss=accept_loss)
        self._table.instance = instance
        self._faults.configure(pool, faults)
        return Opened(self._marker.id, self._media.root, self._table.limits, self._media.shares)

    def check(self) -> PoolCheck:
        """Look whether the array can serve."""
        with translate("check the array"):
            self._media.try_to_write()
        found = self._ports.check()
        if found.health is Health.OK and not self._table.free():
            return PoolCheck(Health.DEGRADED, "the array has no free space; delete volumes or snapshots")
        return found

    def connection(self, volume: VolumeId) -> LocalFile:
        """Where a volume's bytes are, if a port leads there."""
        self._ports.require_one()
        return self._volumes.connection(volume)

    def paths(self, volume: VolumeId) -> list[Path]:
        """The ways to a volume."""
        record = self._table.find(volume)
        return self._ports.paths(self._media.path(record.stored_as, record.file))

    # -- verbs of the control command

    def add_fault(self, fault: Fault) -> None:
        """Put a fault in force."""
        self._faults.add(fault)

    def clear_faults(self, verb: str) -> int:
        """Take faults out of force."""
        return self._faults.clear(verb)

    def release(self, verb: str) -> int:
        """Let go of who hangs."""
        return self._faults.release(verb)

    def fail_port(self, name: str, problem: str) -> None:
        """Let a port fail."""
        self._ports.fail(name, problem)

    def restore_port(self, name: str) -> None:
        """Let a port come back."""
        self._ports.restore(name)

    def stop(self) -> None:
        """End the array once this is answered."""
        self._caller.last = True

    def accept_loss(self) -> bool:
        """Go on without what an earlier array had."""
        return self._marker.accept_loss()


def _verb(place: object, name: str) -> _Verb:
    function = getattr(place, name)
    hints = get_type_hints(function)
    return _Verb(function, {key: hint for key, hint in hints.items() if key != "return"})
