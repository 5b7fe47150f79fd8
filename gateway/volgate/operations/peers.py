"""Life among controllers that share a database: the heartbeat, what they tell each other, and the operations of one that is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import structlog

from volgate.errors import VolgateError
from volgate.forker import clock
from volgate.lanes import Lane
from volgate.names import VolumeName
from volgate.operations import codec, kin
from volgate.operations.handlers import HANDLERS, lock_keys
from volgate.operations.recovery import repair_host
from volgate.operations.requests import AttachVolume
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.store import attachments, controllers, journal, turns
from volgate.store.controllers import ControllerRecord, Identity
from volgate.store.database import Commit
from volgate.store.postgres import Postgres
from volgate.store.records import OperationRecord

__all__ = ["Peers"]

_BEATS = 6  # in the time after which a silent controller is taken for dead
_LOOK_SECONDS = 0.25  # between two looks at what somebody here waits for; tellings come sooner
_NET_SECONDS = 2.0
_log = structlog.get_logger()


class Peers:
    """Threads of one controller: one beats and takes over, one hears, one gives the lease back in time."""

    def __init__(self, world: World, runner: Runner, changed: Callable[[], None]) -> None:
        """`changed` is called when an operator may have told another controller something of pools or hosts."""
        place = cast(Postgres, world.database.place)
        self._world, self._runner, self._place, self._here, self._changed = world, runner, place, place.identity, changed
        self._stop = threading.Event()
        self._acts = Lane("peers", 3, 3)
        self._ready = threading.Event()
        self._taking = threading.Lock()
        self._seen: dict[str, tuple[float, float]] = {}
        self._waiting_for: set[str] = set()
        self._netted = 0.0
        self._threads = [
            threading.Thread(target=partial(place.listen, self._hear, self._stop), name="peers-ear", daemon=True),
            threading.Thread(target=self._live, name="peers-heart", daemon=True),
            threading.Thread(target=self._mind, name="peers-lease", daemon=True),
            threading.Thread(target=self._look, name="peers-eye", daemon=True),
        ]

    def start(self) -> None:
        """Beat once, then go on by threads. Raises VolgateError."""
        self._beat()
        for thread in self._threads:
            thread.start()

    def when_lost(self, act: Callable[[], object]) -> None:
        """Call `act` when this controller is told by a write that others have its place."""
        self._place.lost = act

    def join(self) -> int:
        """Take over from now on, what is there already at once; return with how much. Raises VolgateError."""
        self._ready.set()
        return self.take_over()

    def close(self) -> None:
        """End; the lease runs until the process does."""
        self._stop.set()
        self._place.abandon()

    @property
    def here(self) -> Identity:
        """Who this controller is."""
        return self._here

    def serve(self, pools: Iterable[str]) -> None:
        """Tell which pools this controller serves. Raises VolgateError."""
        self._world.database.write(lambda commit: controllers.serve_pools(commit, self._here.id, pools))

    def served(self) -> set[str]:
        """The pools that others serve. Raises VolgateError."""
        with self._world.database.read() as connection:
            return controllers.served_pools(connection, but=self._here.id)

    # -- the heartbeat

    def _live(self) -> None:
        while not self._stop.wait(self._world.lease.seconds / _BEATS):
            if not self._tried(self._pulse):
                self._seen.clear()  # who could not look has not seen anybody silent

    def _pulse(self) -> None:
        self._beat()
        if self._ready.is_set():
            self.take_over()

    def _tried(self, act: Callable[[], object]) -> bool:
        """Do something that must not end its thread, whatever fails; say whether it went well."""
        failure = self._acts.submit(act).exception()
        if isinstance(failure, VolgateError):
            _log.warning("the database does not serve what controllers need", error=failure.message)
        elif failure is not None:
            _log.error("bug among controllers", exc_info=failure)
        return failure is None

    def _beat(self) -> None:
        since = clock()
        self._world.database.write(_nothing)  # every commit notes that its controller lives
        self._world.lease.renew(since)

    def _mind(self) -> None:
        while not self._stop.wait(self._world.lease.seconds / 60):
            self._world.lease.give_back()

    # -- what others tell

    def _hear(self, said: str) -> None:
        self._tried(partial(self._act, said))

    def _act(self, said: str) -> None:
        word, *rest = said.split(" ")
        if word == "turn" and rest[0] == self._here.id:
            self._runner.order.look(rest[1])
        elif word == "end" and self._runner.elsewhere.wanted(rest[0]):
            self._runner.elsewhere.poll()
        elif word == "cancel":
            self._runner.cancel(rest[0])
        elif word == "look":
            self._runner.publish(rest[0])
        elif word == "again" and (job := self._runner.find(rest[0])):
            self._runner.again(job)
        elif word == "changes":
            self._changed()
        elif not word:
            self._net()

    def _look(self) -> None:
        """Look for what somebody here waits for, and now and then for all that a telling could have been lost of."""
        while not self._stop.wait(_LOOK_SECONDS):
            if not self._tried(self._glance):
                self._stop.wait(1.0)

    def _glance(self) -> None:
        self._runner.elsewhere.poll()
        if time.monotonic() - self._netted > _NET_SECONDS:
            self._net()
            self._runner.elsewhere.nudge()

    def _net(self) -> None:
        self._netted = time.monotonic()
        self._runner.order.poll()
        self._runner.elsewhere.poll()
        self._changed()
        with self._world.database.read() as connection:
            cancelled = journal.cancelled(connection, self._here.id)
        for identifier in cancelled:
            self._runner.cancel(identifier)

    # -- taking over

    def take_over(self) -> int:
        """Bury controllers that are gone and go on with their operations; return with how many. Raises VolgateError."""
        with self._taking:
            return self._take_over()

    def _take_over(self) -> int:
        with self._world.database.read() as connection:
            everybody = {found.identity.id: found for found in controllers.all_of(connection)}
            left = journal.orphans(connection)
        self._runner.order.alone = sum(not found.gone for found in everybody.values()) < 2  # noqa: PLR2004  # this one and another
        buried = [found for found in everybody.values() if not found.gone and found.identity.id != self._here.id and self._bury(found)]
        if buried:
            with self._world.database.read() as connection:
                left = journal.orphans(connection)
        mine = [record for record in left if self._is_free(record, everybody)]
        if any(record.method in ("AttachVolume", "DetachVolume", "CreateSnapshot") for record in mine):
            self._repair()
        taken = [record for record in mine if self._take(record)]
        self._tidy(everybody, left)
        return len(taken)

    def _bury(self, other: ControllerRecord) -> bool:
        """Let a controller that is gone write nothing any more."""
        certain = kin.certainly_gone(other.identity, self._here)
        if not certain and not self._is_silent(other):
            return False
        done = self._world.database.write(partial(_bury, identifier=other.identity.id, heartbeat=None if certain else other.heartbeat))
        if done:
            _log.warning("a controller is gone", controller=other.identity.name, id=other.identity.id, silent=round(other.silent, 1))
        return done

    def _is_silent(self, other: ControllerRecord) -> bool:
        """Whether a whole lapse has gone by, by the database's clock and by ours, in which we could have heard of it."""
        heard, since = self._seen.get(other.identity.id, (0.0, 0.0))
        if heard != other.heartbeat:
            self._seen[other.identity.id] = (other.heartbeat, clock())
            return False
        lapse = self._world.lease.seconds
        return other.silent > lapse and clock() - since > lapse

    def _is_free(self, record: OperationRecord, everybody: dict[str, ControllerRecord]) -> bool:
        """Whether an operation can be gone on with here: its pool is served, and nothing of its controller works on that."""
        pool = record.target.split("/")[1]
        if record.method not in HANDLERS or (record.target.startswith("pools/") and not self._serves(pool)):
            return False
        if not self._hosts_of(record) <= self._world.hosts.keys():
            return False
        owner = everybody.get(record.owner)
        ours = not record.target.startswith("pools/") or self._world.pools.get(pool).occupied
        if owner is None or kin.left_pool(owner.identity, self._here, pool, ours=ours):
            return True
        kin.end(owner.identity, self._here)
        if record.id not in self._waiting_for:
            self._waiting_for.add(record.id)
            _log.warning("an operation waits for processes of its dead controller", operation=record.id, controller=owner.identity.name)
        return False

    def _serves(self, pool: str) -> bool:
        return pool in self._world.pools and not self._world.pools.get(pool).elsewhere

    def _hosts_of(self, record: OperationRecord) -> set[str]:
        """The hosts that an operation may have to change: that of an attach, and those where its volume is attached."""
        request = codec.decode_request(record.method, record.request)
        found = {request.host} - {""} if isinstance(request, AttachVolume) else set[str]()
        names = [VolumeName.parse(key) for key in lock_keys(request) if key.startswith("pools/")]
        with self._world.database.read() as connection:
            for name in names:
                found |= {held.host for held in attachments.of_volume(connection, name.pool, name.volume)}
        return found

    def _repair(self) -> None:
        for name in self._world.hosts:
            repair_host(self._world, name)

    def _take(self, record: OperationRecord) -> bool:
        taken = self._world.database.write(partial(_claim, record=record, owner=self._here.id))
        if taken is None:
            return False
        _log.warning("operation taken over", operation=record.id, method=record.method, target=record.target, of=record.owner)
        self._runner.resume(taken)
        self._runner.order.look(record.id)
        return True

    def _tidy(self, everybody: dict[str, ControllerRecord], left: list[OperationRecord]) -> None:
        """Forget buried controllers that left nothing."""
        owners = {record.owner for record in left}
        for found in everybody.values():
            if found.gone and found.identity.id not in owners:
                self._world.database.write(partial(controllers.leave, identifier=found.identity.id))


def _bury(commit: Commit, *, identifier: str, heartbeat: float | None) -> bool:
    done = controllers.bury(commit, identifier, heartbeat)
    if done:
        turns.clear(commit, identifier)
        turns.tell(commit, "")
    return done


def _claim(commit: Commit, *, record: OperationRecord, owner: str) -> OperationRecord | None:
    if not journal.claim(commit, record, owner):
        return None
    turns.move(commit, record.id, lock_keys(codec.decode_request(record.method, record.request)), owner)
    return journal.find(commit, record.id)


def _nothing(_commit: Commit) -> None:
    pass
