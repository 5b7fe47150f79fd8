"""Level 4, faults: killed, failed, slow and hanging system calls at every point of every mutation."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from volgate.backend import DataPath, Extracts, Holders, Resizes
from volgate.conformance.cases import Level, proves
from volgate.conformance.child import Child, Lost
from volgate.conformance.durable import forgotten
from volgate.conformance.in_process import Opened
from volgate.conformance.tracing import CHANGING, FILES, MUTATING, Point, Stall, Trace, error, hang, kill
from volgate.conformance.verbs import VERBS, Call, Verb
from volgate.errors import Cancelled, NotFound, VolgateError
from volgate.model import Format, Health

__all__ = ["Faults", "Victims"]

_HANG, _HANGS = 30.0, 5
_SLOW = 4.0
_ALL = 1 << 20
EVERY_VERB = pytest.mark.parametrize("verb", VERBS, ids=str)
UNDONE = pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb.name in ("create", "clone-volume", "clone-snapshot", "fill")], ids=str
)


class Victims:
    """Worker processes of one backend, and how many points of a call are tried."""

    def __init__(self, plugin: str, kind: str, pool: Opened, points: int) -> None:
        """`points` 0: every one."""
        self.plugin = plugin
        self.kind = kind
        self._points = points
        self.hangs = 1 if points else _HANGS
        self.pool = pool
        self._children: list[Child] = []
        self._warm: tuple[Verb, Child] | None = None

    def child(self) -> Child:
        """One more worker with the pool open."""
        made = Child(self.plugin, self.kind, self.pool.table)
        self._children.append(made)
        return made

    def warm(self, verb: Verb) -> Child:
        """A worker that has made the call before: what is imported or started once is no part of what follows."""
        kept, self._warm = self._warm, None
        if kept is not None and kept[0] is verb:
            return kept[1]
        child = self.child()
        call = verb.prepare(self.pool)
        _make(child, call)
        return child

    def keep(self, verb: Verb, child: Child) -> None:
        """It made the call, and is the next one that is warm: to start a process costs most."""
        self._warm = (verb, child)

    def points(self, verb: Verb, calls: str, most: int = 0, *, alone: bool = False) -> list[Point]:
        """Which system calls of a mutation are tried: some drawn by the seed, or all. Seen in a run without any fault.

        `alone`: those of the worker on files, without those of the commands that it starts; none if its storage is elsewhere.
        """
        child, call = self.warm(verb), verb.prepare(self.pool)
        with Trace(child.pid, calls, alone=alone) as trace:
            _make(child, call)
        self.keep(verb, child)
        every = trace.points(of_files=alone and calls == FILES)
        assert every or alone, f"{verb} makes no system call that changes anything"
        most = most or self._points or len(every)
        return every if most >= len(every) else self.pool.random.sample(every, most)

    def close(self) -> None:
        """End what still runs."""
        for child in self._children:
            child.end()


def _make(child: Child, call: Call) -> object:
    return child.call(call.method, *call.arguments, **call.keywords)


def _looked_at(pool: Opened) -> None:
    """What a start does first: the pool opens, is healthy, and can be listed, whatever a dead process left."""
    pool.reopen()
    assert pool.backend.check().health is Health.OK
    assert len({volume.name for volume in pool.listed()}) == len(pool.listed())


class Faults:
    """What holds when processes die, and when the kernel refuses, or takes its time."""

    @EVERY_VERB
    @proves(Level.FAULTS, wire=False)
    def test_a_kill_at_any_point_is_made_good(self, victims: Victims, verb: Verb) -> None:
        """A call that died at any of its system calls is finished by its repeat in a new process; the pool opens and lists before that."""
        for point in victims.points(verb, MUTATING):
            child, call = victims.warm(verb), verb.prepare(victims.pool)
            with Trace(child.pid, MUTATING, kill(point)), contextlib.suppress(Lost, VolgateError):
                _make(child, call)
            child.end()
            _looked_at(victims.pool)
            again = victims.child()
            _make(again, call)
            victims.keep(verb, again)
            victims.pool.reopen()
            call.check(victims.pool)
            victims.pool.clear()

    @UNDONE
    @proves(Level.FAULTS, wire=False)
    def test_a_killed_creation_is_taken_back(self, victims: Victims, verb: Verb) -> None:
        """What a creation had made when it died is taken away by the deletion of its uid, and nothing of it is promised any more."""
        for point in victims.points(verb, MUTATING):
            child, call = victims.warm(verb), verb.prepare(victims.pool)
            assert call.undo is not None
            with Trace(child.pid, MUTATING, kill(point)), contextlib.suppress(Lost, VolgateError):
                _make(child, call)
            child.end()
            victims.pool.reopen()
            for _ in range(2):
                victims.pool.backend.delete_volume(call.undo)
            with victims.pool.refused(NotFound):
                victims.pool.get(call.undo.name)
            victims.pool.clear()
            victims.pool.nothing_is_left()

    @EVERY_VERB
    @proves(Level.FAULTS, wire=False)
    def test_a_failed_system_call_is_told_and_made_good(self, victims: Victims, verb: Verb) -> None:
        """A system call that fails ends in one of our errors or in success, never in a bug; the repeat succeeds, and nothing is lost."""
        points = victims.points(verb, FILES, alone=True)
        child = victims.warm(verb)
        for point in points:
            call = verb.prepare(victims.pool)
            name = victims.pool.random.choice(("ENOSPC", "EIO"))
            with Trace(child.pid, FILES, error(name, point), alone=True):
                try:
                    _make(child, call)
                except VolgateError as told:
                    assert told.message and told.status != "INTERNAL", f"{name} at {point}: {told!r}"
                except Lost:
                    pytest.fail(f"{name} at call {point} of {verb}: the process ended")
            _make(child, call)
            victims.pool.reopen()
            call.check(victims.pool)
            victims.pool.clear()

    @EVERY_VERB
    @proves(Level.FAULTS, wire=False)
    def test_a_call_that_hangs_is_made_good(self, victims: Victims, verb: Verb) -> None:
        """A call that hangs in a system call is given up by the end of its process, and finished by its repeat in a new one."""
        for point in victims.points(verb, MUTATING, most=victims.hangs):
            child, call = victims.warm(verb), verb.prepare(victims.pool)
            with Trace(child.pid, MUTATING, hang(_HANG, point)):
                with contextlib.suppress(Lost, VolgateError):
                    child.call(call.method, *call.arguments, timeout=0.5, **call.keywords)
                child.kill()  # while it hangs: without strace it would go on
            child.end()
            _looked_at(victims.pool)
            again = victims.child()
            _make(again, call)
            victims.keep(verb, again)
            victims.pool.reopen()
            call.check(victims.pool)
            victims.pool.clear()

    @EVERY_VERB
    @proves(Level.FAULTS, wire=False)
    def test_what_is_answered_is_durable(self, victims: Victims, verb: Verb) -> None:
        """Before a mutation is answered, every file of the volume that it wrote, and every folder whose entries it changed, is synced."""
        child = victims.warm(verb)
        call = verb.prepare(victims.pool)
        with Trace(child.pid, FILES) as trace:
            _make(child, call)
        victims.pool.reopen()
        call.check(victims.pool)
        assert not (unsynced := forgotten(trace.lines, victims.pool, call)), f"written and not synced: {unsynced}"

    @proves(Level.FAULTS, Extracts, wire=False)
    def test_a_killed_extract_leaves_nothing_beside_its_file(self, victims: Victims) -> None:
        """An extract that died leaves its file at the most: nothing beside it, nothing on the storage, and the volume can be deleted."""
        (verb,) = (verb for verb in VERBS if verb.name == "extract")
        for point in victims.points(verb, MUTATING):
            child, call = victims.warm(verb), verb.prepare(victims.pool)
            with Trace(child.pid, MUTATING, kill(point)), contextlib.suppress(Lost, VolgateError):
                _make(child, call)
            child.end()
            for path in map(Path, call.files):
                assert {*path.parent.iterdir()} <= {path}
            victims.pool.reopen()
            victims.pool.delete(victims.pool.get(call.volume))
            victims.pool.clear()
            victims.pool.nothing_is_left()

    @proves(Level.FAULTS, Holders, Resizes, wire=False)
    def test_a_call_that_died_holds_no_volume(self, victims: Victims) -> None:
        """The backend itself is told as a holder by nobody, also not what is left of it: a process of it that died in a change."""
        (verb,) = (verb for verb in VERBS if verb.name == "expand")
        for point in victims.points(verb, MUTATING):
            child, call = victims.warm(verb), verb.prepare(victims.pool)
            with Trace(child.pid, MUTATING, kill(point)), contextlib.suppress(Lost, VolgateError):
                _make(child, call)
            child.end()
            victims.pool.reopen()
            made = victims.pool.get(call.volume)
            assert [*victims.pool.facet(Holders).holders(victims.pool.id(made))] == []
            victims.pool.clear()

    @proves(Level.FAULTS, wire=False)
    def test_a_slow_change_holds_nobody_up(self, victims: Victims, own_ways: None) -> None:
        """While a change of one volume waits for the storage, others are read and listed."""
        assert own_ways is None
        pool, child = victims.pool, victims.warm(VERBS[0])
        first, other = victims.points(VERBS[0], CHANGING, most=_ALL, alone=True)[0], pool.create()
        call = VERBS[0].prepare(pool)
        child.call("get_volume", other.name)
        with Stall(child.pid, CHANGING, hang(_SLOW, first)) as stall:
            slow = threading.Thread(target=_make, args=(child, call))
            slow.start()
            stall.settle()
            began = time.monotonic()
            assert child.call("get_volume", other.name) == other
            assert other in child.call("list_volumes")
            seconds = time.monotonic() - began
            assert slow.is_alive(), "the change did not wait"
            slow.join(60)
        assert seconds < _SLOW / 2, f"others waited {seconds:.1f} s"

    @proves(Level.FAULTS, DataPath, wire=False)
    def test_a_cancelled_filling_stops(self, subject: Opened) -> None:
        """What `progress` raises ends a filling and is raised; the volume can be filled again, or deleted."""
        made = subject.create(incomplete=True, size=subject.size(4))

        def stop(_done: float) -> None:
            raise Cancelled("enough")

        path = subject.image(subject.pages(made, 40), made.size)
        for _ in range(2):
            with pytest.raises(Cancelled, match="enough"):
                subject.facet(DataPath).fill_from_file(subject.id(made), path, Format.RAW, stop)
        subject.facet(DataPath).fill_from_file(subject.id(made), path, Format.RAW, lambda _done: None)
        assert subject.content(subject.facet(DataPath).complete(subject.id(made)))
        subject.delete(made)
        subject.nothing_is_left()
