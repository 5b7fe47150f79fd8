"""Level 3: many calls at once. The gateway sees to it that one volume sees one mutation at a time; everything else may happen."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from volgate.backend import Clones, Measures, Relabels, Resizes, Reverts, Snapshots
from volgate.conformance.cases import Level, proves
from volgate.conformance.picture import PAGE
from volgate.conformance.subject import Subject
from volgate.errors import AlreadyExists, Busy, NotFound, OutOfSpace, VolgateError
from volgate.model import Volume, VolumeState

__all__ = ["Races", "at_once"]

T = TypeVar("T")
THREADS = 8
_SECONDS = 120.0
_LENT = 1 << 30
"""Bytes that may be promised for a moment in a pool in use: its limit is only tried if no more is left below it."""


def at_once(calls: Sequence[Callable[[], T]]) -> list[T | VolgateError]:
    """Make calls in as many threads, all let go at the same moment; return their answers or refusals in order."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | VolgateError:
        gate.wait(_SECONDS)
        try:
            return call()
        except VolgateError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


@contextmanager
def meanwhile(look: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """Look again and again in a thread of its own while the block runs; what a look raises is in the list at the end."""
    done, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        while not done.is_set() and not failures:
            try:
                look()
            except Busy:
                done.wait(0.01)  # a full queue is an answer
            except BaseException as error:  # noqa: BLE001  # an assertion too: it is raised in the test's own thread
                failures.append(error)

    thread = threading.Thread(target=run, name="conformance-look")
    thread.start()
    try:
        yield failures
    finally:
        done.set()
        thread.join(_SECONDS)
    if failures:
        raise failures[0]


class Races:
    """What holds when calls meet."""

    @proves(Level.CONCURRENCY)
    def test_volumes_made_at_once_are_all_made(self, subject: Subject) -> None:
        """Creations of different volumes at once all succeed, and so do their deletions."""
        specs = [subject.spec() for _ in range(THREADS)]
        made = at_once([partial(subject.backend.create_volume, spec) for spec in specs])
        assert [volume.name for volume in made if isinstance(volume, Volume)] == [spec.name for spec in specs], made
        assert {volume.name for volume in subject.listed()} >= {spec.name for spec in specs}
        assert at_once([partial(subject.delete, volume) for volume in made if isinstance(volume, Volume)]) == [None] * THREADS
        for spec in specs:
            with subject.refused(NotFound):
                subject.get(spec.name)

    @proves(Level.CONCURRENCY)
    def test_lists_are_whole_while_volumes_come_and_go(self, subject: Subject) -> None:
        """A list made while others create and delete never fails, names nothing twice, and has every volume that stays."""
        stay = [subject.create() for _ in range(3)]

        def look() -> None:
            listed = subject.listed()
            names = [volume.name for volume in listed]
            assert len(names) == len(set(names))
            assert all(volume in listed for volume in stay)
            assert all(volume.state is not VolumeState.FAILED for volume in listed), listed

        def come_and_go() -> None:
            for _ in range(5):
                subject.delete(subject.create())

        with meanwhile(look):
            assert at_once([come_and_go] * 3) == [None] * 3

    @proves(Level.CONCURRENCY, Resizes)
    def test_a_volume_is_read_while_it_changes(self, subject: Subject) -> None:
        """Reading a volume that is being changed tells it as it was before or after, and never fails."""
        made, grain = subject.create(), subject.traits.grain
        sizes = [made.size + step * grain for step in range(6)]

        def look() -> None:
            found = subject.get(made)
            assert found.uid == made.uid and found.size in sizes and found.state is VolumeState.READY

        with meanwhile(look):
            for size in sizes:
                subject.facet(Resizes).expand_volume(subject.id(made), size, online=False)

    @proves(Level.CONCURRENCY, content=True)
    def test_volumes_that_change_at_once_stay_apart(self, subject: Subject) -> None:
        """Lives of different volumes, each with all its verbs, run side by side: each ends as it would alone."""
        assert at_once([partial(_live, subject, number) for number in range(1, 5)]) == [None] * 4

    @proves(Level.CONCURRENCY, Measures)
    def test_the_limit_holds_when_many_come_at_once(self, subject: Subject) -> None:
        """Creations at once never promise more than the pool's limit together, and all that is promised is counted once."""
        measures = subject.facet(Measures)
        before = measures.capacity()
        room = before.limit - before.provisioned
        near = before.limit and not (subject.wire and room > _LENT)
        size = min(subject.traits.maximum, room // 3) if near else subject.size()
        size = max(subject.size(), size // subject.traits.grain * subject.traits.grain)
        specs = [subject.spec(size=size) for _ in range(THREADS)]
        told = at_once([partial(subject.backend.create_volume, spec) for spec in specs])
        made = [volume for volume in told if isinstance(volume, Volume)]
        assert all(isinstance(refusal, OutOfSpace) for refusal in told if not isinstance(refusal, Volume)), told
        after = measures.capacity()
        assert after.provisioned == before.provisioned + sum(volume.size for volume in made)
        assert not after.limit or after.provisioned <= after.limit
        assert made or not before.limit
        assert near or len(made) == THREADS, told

    @proves(Level.CONCURRENCY, process=False)
    def test_one_creation_asked_for_at_once_is_one(self, subject: Subject) -> None:
        """The same creation at once has one effect and one answer."""
        spec = subject.spec()
        calls = [partial(subject.backend.create_volume, spec)] * THREADS
        told = at_once(calls)
        assert len({volume.uid for volume in told if isinstance(volume, Volume)}) == 1 and told == [told[0]] * THREADS
        assert [volume.name for volume in subject.listed()].count(spec.name) == 1

    @proves(Level.CONCURRENCY, process=False)
    def test_of_two_that_want_a_name_one_has_it(self, subject: Subject) -> None:
        """Creations of one name with other sizes: one is made, the others are AlreadyExists, and the one is what it was asked to be."""
        name = subject.name()
        specs = [subject.spec(name, size=subject.size(units)) for units in (1, 2, 3)]
        calls = [partial(subject.backend.create_volume, spec) for spec in specs]
        told = at_once(calls)
        made = [volume for volume in told if isinstance(volume, Volume)]
        assert len(made) == 1 and all(isinstance(refusal, AlreadyExists) for refusal in told if not isinstance(refusal, Volume)), told
        assert subject.get(name) == made[0]


def _live(subject: Subject, number: int) -> None:
    """A volume's life from creation to deletion, checked on the way."""
    pages = {0: number, (number + 10) * PAGE: number + 100}
    made = subject.filled(pages)
    backend = subject.backend
    for step in range(3):
        if isinstance(backend, Relabels):
            assert backend.relabel_volume(subject.id(made), {"step": str(step)}).labels == {"step": str(step)}
        if isinstance(backend, Resizes):
            grown = subject.size(step + 2)
            assert backend.expand_volume(subject.id(made), grown, online=False).size == grown
        if isinstance(backend, Snapshots):
            _snapshots(subject, made, step)
    if isinstance(backend, Clones):
        clone = subject.clone(subject.get(made))
        assert subject.content(clone) == pages
        subject.delete(clone)
    assert subject.content(made) == pages
    subject.delete(made)
    with subject.refused(NotFound):
        subject.get(made)


def _snapshots(subject: Subject, made: Volume, step: int) -> None:
    backend = subject.facet(Snapshots)
    cut = subject.snapshot(made)
    assert subject.snapshots(made) == [cut]
    if isinstance(backend, Reverts) and step:
        backend.revert_volume(subject.id(made), cut.uid, token=str(uuid.uuid4()))
    backend.delete_snapshot(subject.id(made), cut.uid)
    assert subject.snapshots(made) == []
