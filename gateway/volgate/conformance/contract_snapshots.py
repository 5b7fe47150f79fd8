"""Level 1, snapshots: points in time, ways back, clones."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from volgate.backend import Clones, Resizes, Reverts, Snapshots, VolumeId
from volgate.conformance.cases import Level, proves
from volgate.conformance.subject import Subject
from volgate.errors import AlreadyExists, InUse, NotFound, OutOfRange, Precondition
from volgate.model import Source, SourceKind, Volume

__all__ = ["SnapshotContract"]

_CLOCK = 300.0  # seconds that the clocks of storage and gateway may differ


class SnapshotContract:
    """What holds for volumes with snapshots, reverts and clones."""

    @proves(Level.CONTRACT, Snapshots)
    def test_a_snapshot_is_as_asked(self, subject: Subject) -> None:
        """`create_snapshot` answers with name, uid, labels, the volume and its size at that time; the list tells the same."""
        made = subject.create()
        cut = subject.cut(labels={"why": "upgrade"})
        told = subject.facet(Snapshots).create_snapshot(subject.id(made), cut)
        assert (told.name, told.labels, told.volume, told.volume_uid, told.size) == (cut.name, cut.labels, made.name, made.uid, made.size)
        assert subject.wire or told.uid == cut.uid
        assert abs(told.created_at - time.time()) < _CLOCK and not told.quiesced
        assert subject.snapshots(made) == [told]

    @proves(Level.CONTRACT, Snapshots)
    def test_a_repeated_snapshot_cuts_nothing(self, subject: Subject) -> None:
        """The same snapshot again answers with the same one."""
        made, cut = subject.create(), subject.cut()
        told = [subject.facet(Snapshots).create_snapshot(subject.id(made), cut) for _ in range(3)]
        assert told == [told[0]] * 3
        assert [snapshot.uid for snapshot in subject.snapshots(made)] == [told[0].uid]

    @proves(Level.CONTRACT, Snapshots)
    def test_a_snapshot_name_that_is_taken_is_refused(self, subject: Subject) -> None:
        """Another snapshot of the same name is AlreadyExists, of the same volume only."""
        one, other = subject.create(), subject.create()
        first = subject.snapshot(one)
        with subject.refused(AlreadyExists, naming=first.name):
            subject.snapshot(one, first.name, labels={"other": "1"})
        assert subject.snapshots(one) == [first]
        assert subject.snapshot(other, first.name).volume == other.name

    @proves(Level.CONTRACT, Snapshots)
    def test_snapshots_are_listed_oldest_first(self, subject: Subject) -> None:
        """`list_snapshots` returns the snapshots of one volume in the order in which they were cut."""
        one, other = subject.create(), subject.create()
        names = [subject.name(hint) for hint in ("z", "a", "m")]
        for name in names:
            subject.snapshot(one, name)
            subject.snapshot(other)
        assert [snapshot.name for snapshot in subject.snapshots(one)] == names

    @proves(Level.CONTRACT, Snapshots)
    def test_a_deleted_snapshot_is_gone(self, subject: Subject) -> None:
        """A deleted snapshot is not listed, the others are; deleting it again is success."""
        made = subject.create()
        old, gone, new = (subject.snapshot(made) for _ in range(3))
        for _ in range(2):
            subject.facet(Snapshots).delete_snapshot(subject.id(made), gone.uid)
            assert _uids(subject, made) == {old.uid, new.uid}

    @proves(Level.CONTRACT, Snapshots)
    def test_a_late_deletion_spares_the_newer_snapshot(self, subject: Subject) -> None:
        """A repeated deletion of an older snapshot leaves the newer one of the same name alone."""
        made = subject.create()
        old = subject.snapshot(made)
        subject.facet(Snapshots).delete_snapshot(subject.id(made), old.uid)
        new = subject.snapshot(made, old.name)
        subject.facet(Snapshots).delete_snapshot(subject.id(made), old.uid)
        assert subject.snapshots(made) == [new]

    @proves(Level.CONTRACT, Snapshots)
    def test_only_the_meant_volume_is_snapshotted(self, subject: Subject) -> None:
        """A snapshot of a volume that does not exist, or whose name another has now, is NotFound or Precondition."""
        made = subject.create()
        for meant in (VolumeId(subject.name(), str(uuid.uuid4())), VolumeId(made.name, str(uuid.uuid4()))):
            with subject.refused(NotFound, Precondition, naming=meant.name):
                subject.facet(Snapshots).create_snapshot(meant, subject.cut())
        assert subject.snapshots(made) == []

    @proves(Level.CONTRACT, Snapshots)
    def test_snapshots_hold_their_volume(self, subject: Subject) -> None:
        """A volume with snapshots is not deleted: InUse names each of them; without them it goes."""
        made = subject.create()
        cuts = [subject.snapshot(made) for _ in range(2)]
        with subject.refused(InUse) as told:
            subject.delete(made)
        assert {holder.name.rpartition("/")[2] for holder in told[0].holders} >= {cut.name for cut in cuts}
        assert _uids(subject, made) == {cut.uid for cut in cuts}
        for cut in cuts:
            subject.facet(Snapshots).delete_snapshot(subject.id(made), cut.uid)
        subject.delete(made)
        with subject.refused(NotFound):
            subject.get(made)

    @proves(Level.CONTRACT, Snapshots, Resizes)
    def test_a_snapshot_keeps_its_size(self, subject: Subject) -> None:
        """A snapshot has the size that its volume had, however the volume grows."""
        made = subject.create()
        cut = subject.snapshot(made)
        subject.facet(Resizes).expand_volume(subject.id(made), subject.size(2), online=False)
        assert [snapshot.size for snapshot in subject.snapshots(made)] == [made.size] == [cut.size]
        assert subject.snapshot(made).size == subject.size(2)

    # -- reverts

    @proves(Level.CONTRACT, Reverts, Resizes)
    def test_a_revert_sets_the_size_back(self, subject: Subject) -> None:
        """A reverted volume has the size of the snapshot and is else the same volume."""
        made = subject.create()
        cut = subject.snapshot(made)
        subject.facet(Resizes).expand_volume(subject.id(made), subject.size(3), online=False)
        told = subject.facet(Reverts).revert_volume(subject.id(made), cut.uid, token=str(uuid.uuid4()))
        assert told.size == subject.get(made).size == made.size
        assert (told.uid, told.name, told.format) == (made.uid, made.name, made.format)

    @proves(Level.CONTRACT, Reverts, Resizes)
    def test_a_repeated_revert_changes_nothing_more(self, subject: Subject) -> None:
        """A revert with a token that was used already leaves what came after it alone."""
        made = subject.create()
        cut, token = subject.snapshot(made), str(uuid.uuid4())
        reverts = subject.facet(Reverts)
        reverts.revert_volume(subject.id(made), cut.uid, token=token)
        grown = subject.facet(Resizes).expand_volume(subject.id(made), subject.size(2), online=False)
        reverts.revert_volume(subject.id(made), cut.uid, token=token)
        assert subject.get(made).size == grown.size

    @proves(Level.CONTRACT, Reverts)
    def test_a_revert_keeps_snapshots_or_names_them(self, subject: Subject) -> None:
        """The snapshot survives, and so do newer ones; or the revert is refused as InUse, naming each newer one."""
        made = subject.create()
        cuts = [subject.snapshot(made) for _ in range(3)]
        try:
            subject.facet(Reverts).revert_volume(subject.id(made), cuts[0].uid, token=str(uuid.uuid4()))
        except InUse as error:
            assert {holder.name.rpartition("/")[2] for holder in error.holders} == {cut.name for cut in cuts[1:]}
        assert _uids(subject, made) == {cut.uid for cut in cuts}

    @proves(Level.CONTRACT, Reverts)
    def test_only_a_snapshot_that_exists_is_reverted_to(self, subject: Subject) -> None:
        """A revert to a snapshot that the volume does not have is NotFound."""
        made, other = subject.create(), subject.create()
        cut = subject.snapshot(other)
        for uid in (cut.uid, str(uuid.uuid4())):
            with subject.refused(NotFound):
                subject.facet(Reverts).revert_volume(subject.id(made), uid, token=str(uuid.uuid4()))
        assert replace(subject.get(made), generation=made.generation) == made

    # -- clones

    @proves(Level.CONTRACT, Clones)
    def test_a_clone_knows_its_origin(self, subject: Subject) -> None:
        """A clone of a snapshot, or of a volume, tells what it was made of, and is else a volume as asked."""
        made = subject.create()
        cut = subject.snapshot(made)
        for snapshot in (cut, None):
            clone = subject.clone(made, snapshot)
            assert clone.source and clone.source == subject.named(subject.origin(made, snapshot))
            assert (clone.format, clone.size, clone.labels) == (made.format, made.size, {})
            assert clone.uid != made.uid and clone.object != made.object
            assert subject.get(clone) == replace(clone, depth=subject.get(clone).depth)

    @proves(Level.CONTRACT, Clones)
    def test_what_a_clone_copies_is_told(self, subject: Subject) -> None:
        """`bytes_to_copy` is no more than the origin has, whatever the clone's size, and telling it makes nothing."""
        made = subject.create()
        for origin in (subject.origin(made, subject.snapshot(made)), subject.origin(made)):
            spec = subject.spec(size=subject.size(2), source=origin, format=made.format)
            assert 0 <= subject.facet(Clones).bytes_to_copy(spec) <= made.size
            with subject.refused(NotFound):
                subject.get(spec.name)

    @proves(Level.CONTRACT, Clones)
    def test_a_repeated_clone_clones_nothing(self, subject: Subject) -> None:
        """The same clone again answers with the same volume."""
        made = subject.create()
        cut = subject.snapshot(made)
        for origin in (subject.origin(made, cut), subject.origin(made)):
            spec = subject.spec(size=made.size, source=origin, format=made.format)
            first = subject.backend.create_volume(spec)
            assert [subject.backend.create_volume(spec).uid for _ in range(2)] == [first.uid, first.uid]

    @proves(Level.CONTRACT, Clones)
    def test_a_clone_may_be_larger(self, subject: Subject) -> None:
        """A clone gets the size that is asked for; less than its origin's is OutOfRange."""
        made = subject.create(size=subject.size(2))
        cut = subject.snapshot(made)
        assert subject.clone(made, cut, size=subject.size(3)).size == subject.size(3)
        spec = subject.spec(size=subject.size(), source=subject.origin(made, cut), format=made.format)
        with subject.refused(OutOfRange):
            subject.backend.create_volume(spec)
        with subject.refused(NotFound):
            subject.get(spec.name)

    @proves(Level.CONTRACT, Clones)
    def test_a_missing_origin_is_not_found(self, subject: Subject) -> None:
        """A clone of a snapshot or a volume that does not exist is NotFound, and makes nothing."""
        made = subject.create()
        missing = Source(SourceKind.SNAPSHOT, made.name, made.uid, subject.name("s"), str(uuid.uuid4()))
        for origin in (missing, Source(SourceKind.VOLUME, subject.name(), str(uuid.uuid4()))):
            spec = subject.spec(source=origin, format=made.format)
            with subject.refused(NotFound):
                subject.backend.create_volume(spec)
            with subject.refused(NotFound):
                subject.get(spec.name)

    @proves(Level.CONTRACT, Clones)
    def test_clones_are_told_as_children(self, subject: Subject) -> None:
        """`children` names the volumes that depend on a volume, for as long as they exist; independent clones depend on nothing."""
        made = subject.create()
        clones = [subject.clone(made, subject.snapshot(made)), subject.clone(made)]
        told = set(subject.facet(Clones).children(subject.id(made)))
        assert told <= {clone.name for clone in clones}
        spec = subject.spec(source=subject.origin(made), format=made.format)
        if not subject.traits.independent_clones and not subject.facet(Clones).bytes_to_copy(spec):
            assert told == {clone.name for clone in clones}
        for clone in clones:
            subject.delete(clone)
        assert not subject.facet(Clones).children(subject.id(made))

    @proves(Level.CONTRACT, Clones)
    def test_clones_hold_their_origin_or_stand_alone(self, subject: Subject) -> None:
        """What a child depends on is not deleted: InUse names the child. A clone that nothing names stands alone when its origin goes."""
        made = subject.create()
        cut = subject.snapshot(made)
        clone = subject.clone(made, cut)
        held = list(subject.facet(Clones).children(subject.id(made)))
        try:
            subject.facet(Snapshots).delete_snapshot(subject.id(made), cut.uid)
            subject.delete(made)
        except InUse as error:
            assert held == [clone.name]
            assert clone.name in {holder.name.rpartition("/")[2] for holder in error.holders}
            assert subject.get(made).uid == made.uid
        else:
            assert not held
        assert subject.get(clone).uid == clone.uid and not subject.get(clone).problem


def _uids(subject: Subject, volume: Volume) -> set[str]:
    """The snapshots of a volume, in any order."""
    return {snapshot.uid for snapshot in subject.snapshots(volume)}
