"""Level 2: no byte is lost, and none appears."""

from __future__ import annotations

import contextlib
import uuid

from volgate.backend import Adopts, Clones, DataPath, Measures, Overlays, Relabels, Resizes, Reverts, Snapshots
from volgate.conformance import picture
from volgate.conformance.cases import READABLE, Level, proves
from volgate.conformance.contract_images import MakeForeign
from volgate.conformance.in_process import Opened
from volgate.conformance.picture import PAGE
from volgate.conformance.subject import Subject
from volgate.errors import Precondition, Unsupported
from volgate.model import Format, Provisioning, Snapshot, Volume

__all__ = ["DataIntegrity"]

LABELS = {"team": "storage", "tier": "gold"}


class DataIntegrity:
    """What holds for the bytes, the labels and the space of volumes, through every verb."""

    @proves(Level.DATA, content=True)
    def test_a_new_volume_reads_as_zeroes(self, subject: Subject) -> None:
        """A new volume holds nothing, also where a deleted one lay before."""
        for form in subject.traits.formats:
            for _ in range(2):
                made = subject.create(format=form)
                assert subject.content(made) == {}
                if not subject.wire:
                    subject.write(made, subject.pages(made))
                subject.delete(made)

    @proves(Level.DATA, content=True)
    def test_what_was_written_stays(self, subject: Subject) -> None:
        """What was written is read, after the pool was opened anew too."""
        pages = {0: 1, PAGE: 2, subject.size() - PAGE: 3}
        for form in subject.traits.formats:
            made = subject.filled(pages, form=form)
            assert subject.content(made) == pages
            subject.reopen()
            assert subject.content(made) == pages
            if not subject.wire:
                subject.write(made, {0: 9})
                assert subject.content(made) == {**pages, 0: 9}

    @proves(Level.DATA, wire=False)
    def test_all_is_there_after_a_restart(self, subject: Subject) -> None:
        """Everything that is told of volumes and snapshots is the same after the pool was opened anew: it lies on the storage."""
        made = [subject.create(labels=LABELS), subject.create(size=subject.size(2))]
        if isinstance(subject.backend, Snapshots):
            cuts = [subject.snapshot(made[0], labels={"why": "upgrade"}), subject.snapshot(made[0])]
            if isinstance(subject.backend, Clones):
                made.append(subject.clone(made[0], cuts[0]))
        before = _told(subject, made)
        subject.reopen()
        assert _told(subject, made) == before

    @proves(Level.DATA, Relabels, Resizes, Snapshots)
    def test_labels_outlive_every_verb(self, subject: Subject) -> None:
        """Labels of volumes and snapshots stay as they are through growth, snapshots, reverts and clones."""
        made = subject.create(labels=LABELS)
        cut = subject.snapshot(made, labels={"why": "upgrade"})
        subject.facet(Resizes).expand_volume(subject.id(made), subject.size(2), online=False)
        newest = subject.snapshot(made)
        if isinstance(subject.backend, Clones):
            assert subject.clone(made, cut, labels={"own": "1"}).labels == {"own": "1"}
        if isinstance(subject.backend, Reverts):
            subject.backend.revert_volume(subject.id(made), newest.uid, token=str(uuid.uuid4()))
        assert subject.get(made).labels == LABELS
        subject.facet(Relabels).relabel_volume(subject.id(made), {"new": "1"})
        assert {snapshot.uid: snapshot.labels for snapshot in subject.snapshots(made)} == {cut.uid: cut.labels, newest.uid: newest.labels}

    @proves(Level.DATA, Resizes, content=True)
    def test_growth_keeps_what_is_there(self, subject: Subject) -> None:
        """A grown volume holds what it held, and zeroes behind; the new part can be written to."""
        for form in subject.traits.formats:
            pages = {0: 1, subject.size() - PAGE: 2}
            made = subject.filled(pages, form=form)
            grown = subject.facet(Resizes).expand_volume(subject.id(made), subject.size(3), online=False)
            assert subject.content(grown) == pages
            if not subject.wire:
                subject.write(grown, {grown.size - PAGE: 7})
                assert subject.content(grown) == {**pages, grown.size - PAGE: 7}

    # -- snapshots

    @proves(Level.DATA, Snapshots, READABLE, wire=False)
    def test_a_snapshot_is_frozen(self, subject: Subject) -> None:
        """What is written after a snapshot is in the volume and not in the snapshot, for each of several."""
        for form in _snapshotted(subject):
            made, expected = subject.create(format=form), dict[str, picture.Picture]()
            pages: picture.Picture = {}
            for number in range(3):
                pages = {**pages, number * PAGE: number + 1, 8 * PAGE: number + 10}
                subject.write(made, pages)
                expected[subject.snapshot(made).uid] = pages
            subject.write(made, {0: 99})
            _compare(subject, made, {**pages, 0: 99}, expected)

    @proves(Level.DATA, Snapshots, READABLE, wire=False)
    def test_a_deleted_snapshot_takes_nothing_along(self, subject: Subject) -> None:
        """Whichever snapshot is deleted first, the volume and the other snapshots keep their content."""
        for form in _snapshotted(subject):
            for victims in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
                made, cuts, pages = subject.create(format=form), list[Snapshot](), dict[int, int]()
                expected = dict[str, picture.Picture]()
                for number in range(3):
                    pages = {**pages, number * PAGE: number + 1, 8 * PAGE: number + 10}
                    subject.write(made, pages)
                    cuts.append(subject.snapshot(made))
                    expected[cuts[-1].uid] = pages
                for victim in victims:
                    subject.facet(Snapshots).delete_snapshot(subject.id(made), cuts[victim].uid)
                    del expected[cuts[victim].uid]
                    if isinstance(subject.backend, Overlays):
                        subject.backend.collapse_layers(subject.id(made))
                    _compare(subject, made, pages, expected)

    @proves(Level.DATA, Reverts, READABLE, wire=False)
    def test_a_revert_brings_back_the_content(self, subject: Subject) -> None:
        """A reverted volume reads as its snapshot did; the snapshots keep their content, and what is written later is the volume's own."""
        for form in _snapshotted(subject):
            made, expected = subject.create(format=form), dict[str, picture.Picture]()
            for number in (1, 2):
                subject.write(made, {0: number, number * PAGE: number})
                newest = subject.snapshot(made)
                expected[newest.uid] = dict(subject.content(made))
            subject.write(made, {0: 3, 5 * PAGE: 3})
            subject.facet(Reverts).revert_volume(subject.id(made), newest.uid, token=str(uuid.uuid4()))
            _compare(subject, made, expected[newest.uid], expected)
            subject.write(made, {0: 4})
            _compare(subject, made, {**expected[newest.uid], 0: 4}, expected)

    @proves(Level.DATA, Reverts, Resizes, wire=False)
    def test_a_revert_over_a_growth_leaves_zeroes(self, subject: Subject) -> None:
        """What a volume held beyond the size of the snapshot is gone for good: growing it again shows zeroes."""
        for form in _snapshotted(subject):
            made = subject.create(format=form)
            subject.write(made, {0: 1})
            cut = subject.snapshot(made)
            grown = subject.facet(Resizes).expand_volume(subject.id(made), subject.size(2), online=False)
            subject.write(grown, {grown.size - PAGE: 2})
            back = subject.facet(Reverts).revert_volume(subject.id(made), cut.uid, token=str(uuid.uuid4()))
            assert subject.content(back) == {0: 1}
            again = subject.facet(Resizes).expand_volume(subject.id(made), subject.size(2), online=False)
            assert subject.content(again) == {0: 1}

    @proves(Level.DATA, Snapshots, DataPath)
    def test_a_snapshot_is_read_as_it_was(self, subject: Subject) -> None:
        """The image of a snapshot holds what the volume held then."""
        for form in _snapshotted(subject):
            pages = {0: 1, subject.size() - PAGE: 2}
            made = subject.filled(pages, form=form)
            cut = subject.snapshot(made)
            if not subject.wire:
                subject.write(made, {0: 3})
            assert subject.content(made, cut) == pages

    # -- clones

    @proves(Level.DATA, Clones, content=True)
    def test_a_clone_holds_what_its_origin_held(self, subject: Subject) -> None:
        """A clone of a snapshot reads as the snapshot, one of a volume as the volume, and a larger one as zeroes behind."""
        for form in _cloned(subject):
            pages = {0: 1, 5 * PAGE: 2}
            made = subject.filled(pages, form=form)
            assert subject.content(subject.clone(made)) == pages
            if form in _snapshotted(subject):
                cut = subject.snapshot(made)
                assert subject.content(subject.clone(made, cut)) == pages
                assert subject.content(subject.clone(made, cut, size=subject.size(2))) == pages

    @proves(Level.DATA, Clones, wire=False)
    def test_a_clone_and_its_origin_go_their_own_ways(self, subject: Subject) -> None:
        """What is written to a clone is not in its origin, nor the other way round, nor in another clone."""
        for form in _cloned(subject):
            made = subject.create(format=form)
            subject.write(made, {0: 1, PAGE: 1})
            first = subject.clone(made, format=form)
            subject.write(first, {0: 2})
            subject.write(made, {PAGE: 3})
            second = subject.clone(made, format=form)
            subject.write(second, {2 * PAGE: 4})
            assert subject.content(made) == {0: 1, PAGE: 3}
            assert subject.content(first) == {0: 2, PAGE: 1}
            assert subject.content(second) == {0: 1, PAGE: 3, 2 * PAGE: 4}

    @proves(Level.DATA, Clones, wire=False)
    def test_a_clone_of_a_clone_outlives_its_siblings(self, subject: Subject) -> None:
        """Clones of clones keep their content when others of the family are deleted."""
        for form in _cloned(subject):
            made = subject.create(format=form)
            subject.write(made, {0: 1})
            child = subject.clone(made, format=form)
            subject.write(child, {PAGE: 2})
            grandchild, sibling = subject.clone(child, format=form), subject.clone(made, format=form)
            subject.write(grandchild, {2 * PAGE: 3})
            subject.delete(sibling)
            subject.reopen()
            assert subject.content(grandchild) == {0: 1, PAGE: 2, 2 * PAGE: 3}
            assert subject.content(child) == {0: 1, PAGE: 2}

    # -- images

    @proves(Level.DATA, DataPath)
    def test_an_image_comes_in_whole(self, subject: Subject) -> None:
        """A volume that was filled from an image holds it, and zeroes behind where it is larger."""
        for form in subject.traits.formats:
            pages = {0: 1, 3 * PAGE: 2, subject.size() - PAGE: 3}
            assert subject.content(subject.filled(pages, form=form)) == pages

    @proves(Level.DATA, DataPath, wire=False)
    def test_filling_begins_anew(self, subject: Opened) -> None:
        """A volume that is filled again, from another image, holds that one alone."""
        for form in subject.traits.formats:
            made = subject.create(format=form, incomplete=True)
            for pages in ({0: 1, PAGE: 1}, {PAGE: 2}):
                path = subject.image(pages, made.size)
                subject.facet(DataPath).fill_from_file(subject.id(made), path, Format.RAW, lambda _done: None)
            assert subject.content(subject.facet(DataPath).complete(subject.id(made))) == {PAGE: 2}

    @proves(Level.DATA, Adopts, wire=False)
    def test_adoption_keeps_the_data(self, subject: Subject, make_foreign: MakeForeign) -> None:
        """An adopted object holds what it held."""
        locator = make_foreign(subject.size())
        made = subject.facet(Adopts).adopt_volume(locator, subject.spec(format=Format.RAW))
        assert subject.content(made) == {0: 0xAD, subject.size() - PAGE: 0xAD}

    # -- layers under a guest

    @proves(Level.DATA, Overlays, wire=False)
    def test_layers_keep_what_a_guest_wrote(self, subject: Subject) -> None:
        """What is written to an overlay is the volume's, the snapshot below it stays; merged layers hold what they held together."""
        made, expected = subject.create(format=Format.QCOW2), dict[str, picture.Picture]()
        overlays, pages = subject.facet(Overlays), {0: 1}
        subject.write(made, pages)
        for number in (2, 3):
            cut = subject.cut()
            overlay = overlays.prepare_overlay(subject.id(made), cut)
            expected[cut.uid] = dict(pages)
            pages = {**pages, 0: number, number * PAGE: number}
            picture.write(overlay.top, pages)
            overlays.finish_overlay(subject.id(made), cut)
            _compare(subject, made, pages, expected)
        for uid in list(expected):
            overlays.delete_snapshot(subject.id(made), uid)
            del expected[uid]
            overlays.collapse_layers(subject.id(made))
            _compare(subject, made, pages, expected)

    # -- space

    @proves(Level.DATA, Measures)
    def test_a_thick_volume_has_its_space(self, subject: Subject) -> None:
        """The space of a thick volume is taken when it is made, and so is that of its growth; or thick volumes are Unsupported."""
        for form in subject.traits.formats:
            try:
                made = subject.create(format=form, provisioning=Provisioning.THICK)
            except Unsupported:
                continue
            assert made.provisioning is Provisioning.THICK and made.allocated >= made.size
            if isinstance(subject.backend, Resizes):
                grown = subject.backend.expand_volume(subject.id(made), subject.size(3), online=False)
                assert grown.allocated >= grown.size

    @proves(Level.DATA, Measures, DataPath, wire=False)
    def test_a_thick_volume_that_was_filled_has_its_space(self, subject: Opened) -> None:
        """A thick volume can be filled from an image, whether that is as large or smaller, and has its space then too."""
        for form in subject.traits.formats:
            for size in (subject.size(3), subject.size()):
                spec = subject.spec(size=subject.size(3), format=form, provisioning=Provisioning.THICK, incomplete=True)
                try:
                    made = subject.backend.create_volume(spec)
                except Unsupported:
                    break
                path = subject.image({0: 1, size - PAGE: 2}, size)
                subject.facet(DataPath).fill_from_file(subject.id(made), path, Format.RAW, lambda _done: None)
                done = subject.facet(DataPath).complete(subject.id(made))
                assert done.size == made.size and done.allocated >= done.size
                assert subject.content(done) == {0: 1, size - PAGE: 2}

    @proves(Level.DATA, wire=False)
    def test_a_thin_volume_takes_what_is_written(self, subject: Subject) -> None:
        """A new thin volume takes less than its size, and at least what is written to it; one that is a whole unit takes all, always."""
        for form in subject.traits.formats:
            made = subject.create(size=subject.size(8), format=form)
            if subject.traits.whole:
                assert made.allocated == made.size >= subject.size(8)
                continue
            written = dict.fromkeys(range(0, 64 * PAGE, PAGE), 1)
            subject.write(made, written)
            assert made.allocated < made.size
            assert len(written) * PAGE <= subject.get(made).allocated < made.size


def _told(subject: Subject, volumes: list[Volume]) -> object:
    """All that the backend says of these volumes."""
    names = {volume.name for volume in volumes}
    listed = [volume for volume in subject.listed() if volume.name in names]
    snapshots = [subject.snapshots(volume) for volume in listed] if isinstance(subject.backend, Snapshots) else []
    children = [sorted(subject.backend.children(subject.id(volume))) for volume in listed] if isinstance(subject.backend, Clones) else []
    return listed, [subject.get(volume) for volume in listed], snapshots, children


def _compare(subject: Subject, volume: Volume, pages: picture.Picture, snapshots: dict[str, picture.Picture]) -> None:
    """See that a volume and its snapshots hold what they should."""
    assert subject.content(volume) == pages
    known = {snapshot.uid: snapshot for snapshot in subject.snapshots(volume)}
    assert known.keys() == snapshots.keys()
    for uid, expected in snapshots.items():
        assert subject.content(volume, known[uid]) == expected


def _snapshotted(subject: Subject) -> list[Format]:
    """The formats whose detached volumes can be snapshotted in this pool: one at least."""
    found = []
    for form in subject.traits.formats:
        with contextlib.suppress(Unsupported, Precondition):  # as raw files where blocks cannot be shared
            subject.snapshot(subject.create(format=form))
            found.append(form)
    assert found, "no volume can be snapshotted"
    return found


def _cloned(subject: Subject) -> tuple[Format, ...]:
    """Every format: a clone may have to copy, but is made."""
    return subject.traits.formats
