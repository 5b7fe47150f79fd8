"""Level 2, the model: verbs in any order that hypothesis thinks of, against a few lines that say what they mean."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from volgate.backend import Clones, Overlays, Relabels, Resizes, Reverts, Snapshots
from volgate.conformance.cases import READABLE, Level, proves
from volgate.conformance.in_process import Opened
from volgate.conformance.picture import PAGE, Picture
from volgate.errors import InUse
from volgate.model import Labels, Snapshot, Volume

__all__ = ["Model"]

_MOST = 6
PICK = st.integers(0, 10**6)
PLACE = st.integers(0, 15)
VALUE = st.integers(1, 255)


@dataclass(slots=True)
class _Cut:
    """A snapshot as the model has it."""

    uid: str
    name: str
    size: int
    pages: Picture
    clones: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Known:
    """A volume as the model has it."""

    volume: Volume
    size: int
    labels: Labels
    pages: Picture
    cuts: list[_Cut] = field(default_factory=list)


class _Machine(RuleBasedStateMachine):
    """The rules; each acts on the pool and on the model, the invariants compare them."""

    def __init__(self, pool: Opened) -> None:
        super().__init__()
        self.pool = pool
        self.known: dict[str, _Known] = {}

    def has(self, *facets: Any) -> bool:
        """Whether the backend has the facets."""
        return all(isinstance(self.pool.backend, facet) for facet in facets)

    def one(self, pick: int) -> _Known:
        """Any volume."""
        return list(self.known.values())[pick % len(self.known)]

    @precondition(lambda self: len(self.known) < _MOST)
    @rule(units=st.integers(1, 2), form=PICK)
    def create(self, units: int, form: int) -> None:
        """Make an empty volume."""
        formats = self.pool.traits.formats
        made = self.pool.create(size=self.pool.size(units), format=formats[form % len(formats)], labels={"n": str(len(self.known))})
        self.known[made.name] = _Known(made, made.size, made.labels, {})

    @precondition(lambda self: self.known)
    @rule(pick=PICK, place=PLACE, value=VALUE)
    def write(self, pick: int, place: int, value: int) -> None:
        """Write a page near the begin or near the end."""
        one = self.one(pick)
        offset = place * PAGE if place < 8 else one.size - (16 - place) * PAGE  # half here, half there
        self.pool.write(one.volume, {offset: value})
        one.pages[offset] = value

    @precondition(lambda self: self.known and self.has(Resizes))
    @rule(pick=PICK)
    def expand(self, pick: int) -> None:
        """Grow a volume."""
        one = self.one(pick)
        one.size = self.pool.facet(Resizes).expand_volume(self.pool.id(one.volume), one.size + self.pool.size(), online=False).size

    @precondition(lambda self: self.known and self.has(Relabels))
    @rule(pick=PICK, labels=st.dictionaries(st.sampled_from("abc"), st.text("xyz", max_size=3), max_size=2))
    def relabel(self, pick: int, labels: Labels) -> None:
        """Replace labels."""
        one = self.one(pick)
        one.labels = self.pool.facet(Relabels).relabel_volume(self.pool.id(one.volume), labels).labels

    @precondition(lambda self: self.snapshotted())
    @rule(pick=PICK)
    def snapshot(self, pick: int) -> None:
        """Cut a snapshot, of few."""
        able = self.snapshotted()
        one = able[pick % len(able)]
        if len(one.cuts) < 3:  # enough for all orders
            cut = self.pool.snapshot(one.volume)
            one.cuts.append(_Cut(cut.uid, cut.name, one.size, dict(one.pages)))

    def snapshotted(self) -> list[_Known]:
        """The volumes of a format with snapshots: the pool's default has them."""
        default = self.pool.traits.formats[0]
        return [one for one in self.known.values() if one.volume.format is default] if self.has(Snapshots) else []

    @precondition(lambda self: any(one.cuts for one in self.known.values()))
    @rule(pick=PICK)
    def unsnapshot(self, pick: int) -> None:
        """Delete a snapshot, unless a clone holds it."""
        one, cut = self.any_cut(pick)
        try:
            self.pool.facet(Snapshots).delete_snapshot(self.pool.id(one.volume), cut.uid)
        except InUse:
            assert cut.clones & self.known.keys(), "nothing holds it"
        else:
            one.cuts.remove(cut)

    @precondition(lambda self: self.has(Reverts) and any(one.cuts for one in self.known.values()))
    @rule(pick=PICK)
    def revert(self, pick: int) -> None:
        """Go back, where newer snapshots allow it."""
        one, cut = self.any_cut(pick)
        try:
            told = self.pool.facet(Reverts).revert_volume(self.pool.id(one.volume), cut.uid, token=str(uuid.uuid4()))
        except InUse:
            assert cut is not one.cuts[-1], "nothing is newer"
        else:
            one.size, one.pages = told.size, dict(cut.pages)
            assert one.size == cut.size

    def any_cut(self, pick: int) -> tuple[_Known, _Cut]:
        """Any snapshot."""
        every = [(one, cut) for one in self.known.values() for cut in one.cuts]
        return every[pick % len(every)]

    @precondition(lambda self: self.known and len(self.known) < _MOST and self.has(Clones))
    @rule(pick=PICK, of_snapshot=st.booleans(), more=st.booleans())
    def clone(self, pick: int, of_snapshot: bool, more: bool) -> None:  # hypothesis gives them by name
        """Make a volume of a volume, or of a snapshot."""
        one = self.one(pick)
        cut = one.cuts[pick % len(one.cuts)] if of_snapshot and one.cuts else None
        told = next(snapshot for snapshot in self.pool.snapshots(one.volume) if snapshot.uid == cut.uid) if cut else None
        size = (cut.size if cut else one.size) + (self.pool.size() if more else 0)
        made = self.pool.clone(one.volume, told, size=size, format=one.volume.format)
        self.known[made.name] = _Known(made, size, {}, dict(cut.pages if cut else one.pages))
        if cut:
            cut.clones.add(made.name)

    @precondition(lambda self: self.known)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        """Delete a volume, unless snapshots or clones hold it."""
        one = self.one(pick)
        try:
            self.pool.delete(one.volume)
        except InUse as error:
            assert error.holders, "it does not say who holds it"
        else:
            assert not one.cuts
            del self.known[one.volume.name]

    @precondition(lambda self: self.known and self.has(Overlays))
    @rule(pick=PICK)
    def collapse(self, pick: int) -> None:
        """Merge layers that nobody needs."""
        self.pool.facet(Overlays).collapse_layers(self.pool.id(self.one(pick).volume))

    @rule()
    def reopen(self) -> None:
        """Forget what was in memory."""
        self.pool.reopen()

    @invariant()
    def lists_agree(self) -> None:
        """The list has the model's volumes, as the model has them."""
        listed = {volume.name: (volume.uid, volume.size, volume.labels) for volume in self.pool.listed()}
        assert listed == {name: (one.volume.uid, one.size, one.labels) for name, one in self.known.items()}
        if self.has(Snapshots):
            for one in self.known.values():
                told = [(cut.uid, cut.name, cut.size) for cut in self.pool.snapshots(one.volume)]
                assert told == [(cut.uid, cut.name, cut.size) for cut in one.cuts]

    def readable(self, one: _Known) -> list[tuple[Snapshot, _Cut]]:
        """The snapshots of a volume whose content can be looked at, as they are told and as the model has them."""
        return list(zip(self.pool.snapshots(one.volume), one.cuts, strict=True)) if one.cuts and self.has(READABLE) else []

    def teardown(self) -> None:
        """Compare every byte, then take all away."""
        try:
            for one in self.known.values():
                assert self.pool.content(one.volume) == one.pages
                for told, cut in self.readable(one):
                    assert self.pool.content(one.volume, told) == cut.pages
        finally:
            self.pool.clear()


class Model:
    """One test of all verbs together."""

    @proves(Level.DATA, wire=False)
    def test_verbs_in_any_order_come_to_what_a_model_says(self, subject: Opened, model_examples: int) -> None:
        """Any sequence of verbs leaves the volumes, sizes, labels, snapshots and bytes that a model of a few lines has."""
        told = settings(
            max_examples=model_examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        machine: Any = seed(subject.random.getrandbits(32))(lambda: _Machine(subject))
        run_state_machine_as_test(machine, settings=told)
