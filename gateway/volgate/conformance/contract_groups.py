"""Level 1 and 2: snapshots of several volumes at one moment, and what differs between two moments."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from volgate.backend import ChangedBlocks, Clones, DataPath, Extent, GroupMember, Groups, Reverts, Snapshots
from volgate.conformance.cases import READABLE, Level, proves
from volgate.conformance.picture import PAGE
from volgate.conformance.subject import Subject
from volgate.errors import AlreadyExists, NotFound, Precondition
from volgate.model import Labels, Snapshot, Volume

__all__ = ["GroupContract"]


class GroupContract:
    """What holds for groups of snapshots, and for changed blocks."""

    @proves(Level.CONTRACT, Groups)
    def test_a_group_is_a_snapshot_of_each(self, subject: Subject) -> None:
        """`create_snapshot_group` answers with a snapshot of each volume, in order, as asked; each is listed, and deleted by itself."""
        volumes = [subject.create(size=subject.size(units)) for units in (2, 1, 3)]
        members = _members(subject, volumes, labels={"why": "backup"})
        told = [*subject.facet(Groups).create_snapshot_group(str(uuid.uuid4()), members)]
        assert [(cut.name, cut.volume, cut.volume_uid, cut.size, cut.labels) for cut in told] == [
            (member.spec.name, volume.name, volume.uid, volume.size, {"why": "backup"})
            for member, volume in zip(members, volumes, strict=True)
        ]
        assert subject.wire or [cut.uid for cut in told] == [member.spec.uid for member in members]
        assert [subject.snapshots(volume) for volume in volumes] == [[cut] for cut in told]
        subject.facet(Groups).delete_snapshot(subject.id(volumes[0]), told[0].uid)
        assert [len(subject.snapshots(volume)) for volume in volumes] == [0, 1, 1]
        subject.delete(volumes[0])

    @proves(Level.CONTRACT, Groups)
    def test_a_repeated_group_cuts_nothing(self, subject: Subject) -> None:
        """The same group again answers with the same snapshots."""
        volumes, group = [subject.create() for _ in range(2)], str(uuid.uuid4())
        members = _members(subject, volumes)
        told = [[*subject.facet(Groups).create_snapshot_group(group, members)] for _ in range(3)]
        assert told == [told[0]] * 3
        assert [[cut.uid for cut in subject.snapshots(volume)] for volume in volumes] == [[cut.uid] for cut in told[0]]

    @proves(Level.CONTRACT, Groups)
    def test_a_group_is_cut_whole_or_not_at_all(self, subject: Subject) -> None:
        """If one of the snapshots cannot be cut, since its name is taken or its volume is gone, none is."""
        volumes = [subject.create() for _ in range(3)]
        members = _members(subject, volumes)
        taken = subject.snapshot(volumes[-1], members[-1].spec.name)
        with subject.refused(AlreadyExists, naming=taken.name):
            subject.facet(Groups).create_snapshot_group(str(uuid.uuid4()), members)
        assert [subject.snapshots(volume) for volume in volumes] == [[], [], [taken]]
        gone = subject.create()
        members = _members(subject, [*volumes, gone])
        subject.delete(gone)
        with subject.refused(NotFound, Precondition, naming=gone.name):
            subject.facet(Groups).create_snapshot_group(str(uuid.uuid4()), members)
        assert [subject.snapshots(volume) for volume in volumes] == [[], [], [taken]]

    @proves(Level.DATA, Groups, READABLE, wire=False)
    def test_a_group_keeps_what_was_there(self, subject: Subject) -> None:
        """The snapshots of a group hold what their volumes held, whatever is written afterwards."""
        volumes = [subject.create() for _ in range(2)]
        before = [subject.pages(volume) for volume in volumes]
        for volume, pages in zip(volumes, before, strict=True):
            subject.write(volume, pages)
        told = _group(subject, volumes)
        for volume, pages in zip(volumes, before, strict=True):
            subject.write(volume, dict.fromkeys(pages, 255))
        assert [subject.content(volume, cut) for volume, cut in zip(volumes, told, strict=True)] == before

    @proves(Level.DATA, Groups, Reverts, READABLE, wire=False)
    def test_a_volume_goes_back_to_a_snapshot_of_a_group(self, subject: Subject) -> None:
        """A revert to a snapshot of a group sets that volume back, and no other."""
        volumes = [subject.create() for _ in range(2)]
        for volume in volumes:
            subject.write(volume, {0: 1})
        told = _group(subject, volumes)
        for volume in volumes:
            subject.write(volume, {0: 2, PAGE: 3})
        subject.facet(Reverts).revert_volume(subject.id(volumes[0]), told[0].uid, token=str(uuid.uuid4()))
        assert [subject.content(volume) for volume in volumes] == [{0: 1}, {0: 2, PAGE: 3}]

    @proves(Level.DATA, Groups, Clones, DataPath, wire=False)
    def test_a_snapshot_of_a_group_is_cloned(self, subject: Subject) -> None:
        """A clone of a snapshot of a group holds what that holds."""
        volumes = [subject.create() for _ in range(2)]
        for volume in volumes:
            subject.write(volume, {PAGE: 4})
        told = _group(subject, volumes)
        subject.write(volumes[1], {PAGE: 5})
        clone = subject.clone(volumes[1], told[1])
        assert subject.content(clone) == {PAGE: 4}

    # -- changed blocks

    @proves(Level.CONTRACT, ChangedBlocks)
    def test_only_what_exists_is_compared(self, subject: Subject) -> None:
        """A snapshot that does not exist is NotFound; a base that is not older is Precondition."""
        made, other = subject.create(), subject.create()
        old, new, strange = subject.snapshot(made), subject.snapshot(made), subject.snapshot(other)
        for base, newer in ((strange.uid, ""), ("", strange.uid), (strange.uid, new.uid)):
            with subject.refused(NotFound):
                _changes(subject, made, base, newer)
        for base, newer in ((new.uid, old.uid), (old.uid, old.uid)):
            with subject.refused(Precondition):
                _changes(subject, made, base, newer)
        assert _changes(subject, made, old.uid, new.uid) == []

    @proves(Level.DATA, ChangedBlocks, READABLE, wire=False)
    def test_what_changed_is_told(self, subject: Subject) -> None:
        """All pages that were written between two points in time are told; if asked exactly, no others where there were data before."""
        made = subject.create(size=subject.size(4))
        subject.write(made, {0: 1, 7 * PAGE: 1, made.size - PAGE: 1})
        first = subject.snapshot(made)
        middle, late = {7 * PAGE: 2, made.size // 2: 3}, {0: 4, made.size - PAGE: 5}
        subject.write(made, middle)
        second = subject.snapshot(made)
        subject.write(made, late)
        for base, newer, changed in ((first.uid, second.uid, middle), (second.uid, "", late), (first.uid, "", {**middle, **late})):
            assert _pages(_changes(subject, made, base, newer)) == set(changed)
            assert _pages(_changes(subject, made, base, newer, exact=False)) >= set(changed)

    @proves(Level.DATA, ChangedBlocks, READABLE, wire=False)
    def test_all_that_was_written_is_told_without_a_base(self, subject: Subject) -> None:
        """Without a base, whatever is no zero is told; what is told as zeroes reads as zeroes."""
        made = subject.create(size=subject.size(2))
        pages = subject.pages(made)
        subject.write(made, pages)
        cut = subject.snapshot(made)
        subject.write(made, {5 * PAGE: 9})
        for newer, held in ((cut.uid, subject.content(made, cut)), ("", {**pages, 5 * PAGE: 9})):
            for exact in (True, False):
                told = _changes(subject, made, "", newer, exact=exact)
                assert _pages(told) >= set(held)
                assert not _pages([extent for extent in told if not extent.data]) & set(held)

    @proves(Level.DATA, ChangedBlocks, READABLE, wire=False)
    def test_changes_are_told_of_the_range_alone(self, subject: Subject) -> None:
        """Extents come in order, do not overlap, and lie within `offset` and `length`."""
        made = subject.create(size=subject.size(2))
        cut = subject.snapshot(made)
        subject.write(made, {PAGE * number: 1 for number in range(8)})
        for exact in (True, False):
            found = subject.facet(ChangedBlocks).changed_blocks(
                subject.id(made), cut.uid, "", offset=2 * PAGE, length=3 * PAGE, exact=exact
            )
            at = 2 * PAGE
            for extent in (told := [*found]):
                assert at <= extent.offset and extent.length > 0
                at = extent.offset + extent.length
            assert at <= 5 * PAGE and _pages(told) == {2 * PAGE, 3 * PAGE, 4 * PAGE}


def _members(subject: Subject, volumes: Sequence[Volume], *, labels: Labels | None = None) -> list[GroupMember]:
    return [GroupMember(subject.id(volume), subject.cut(labels=labels or {})) for volume in volumes]


def _group(subject: Subject, volumes: Sequence[Volume]) -> list[Snapshot]:
    """Cut a group, and tell its snapshots as they are listed."""
    subject.facet(Groups).create_snapshot_group(str(uuid.uuid4()), _members(subject, volumes))
    return [subject.facet(Snapshots).list_snapshots(subject.id(volume))[-1] for volume in volumes]


def _changes(subject: Subject, volume: Volume, base: str, newer: str, *, exact: bool = True) -> list[Extent]:
    """All of a volume's changes."""
    facet, of = subject.facet(ChangedBlocks), subject.id(volume)
    return [*facet.changed_blocks(of, base, newer, offset=0, length=volume.size, exact=exact)]


def _pages(extents: Sequence[Extent]) -> set[int]:
    """The pages that extents touch."""
    return {page * PAGE for extent in extents for page in range(extent.offset // PAGE, -(-(extent.offset + extent.length) // PAGE))}
