"""Level 1, images: volumes that are filled from images, objects that others made, layers under a running guest."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from volgate.backend import Adopts, DataPath, Overlays, VolumeId
from volgate.conformance.cases import Level, proves
from volgate.conformance.in_process import Opened
from volgate.conformance.subject import Subject
from volgate.connection import as_file
from volgate.errors import NotFound, Precondition
from volgate.model import Format, Volume, VolumeState

__all__ = ["ImageContract", "MakeForeign"]

MakeForeign = Callable[[int], str]


class ImageContract:
    """What holds for imports, adoptions and overlays."""

    # -- volumes that are filled

    @proves(Level.CONTRACT, DataPath, wire=False)
    def test_an_incomplete_volume_is_not_used(self, subject: Subject) -> None:
        """A volume that an import fills is listed as creating, and has no connection, until it is completed."""
        made = subject.create(incomplete=True)
        assert made.state is VolumeState.CREATING
        assert [volume.state for volume in subject.listed() if volume.name == made.name] == [VolumeState.CREATING]
        with subject.refused(Precondition, naming=made.name):
            subject.backend.connection(subject.id(made), host="conformance")
        done = subject.facet(DataPath).complete(subject.id(made))
        assert done.state is VolumeState.READY and done.uid == made.uid
        assert subject.backend.connection(subject.id(made), host="conformance")

    @proves(Level.CONTRACT, DataPath, wire=False)
    def test_a_repeated_completion_changes_nothing(self, subject: Subject) -> None:
        """Completing a volume that is complete is success, with the same answer."""
        made = subject.create(incomplete=True)
        told = [subject.facet(DataPath).complete(subject.id(made)) for _ in range(2)]
        assert told[0] == told[1] == subject.get(made)

    @proves(Level.CONTRACT, DataPath, wire=False)
    def test_a_complete_volume_is_not_filled(self, subject: Opened) -> None:
        """An image is never written over a volume that is complete: Precondition."""
        made, path = subject.create(), subject.image({}, subject.size())
        with subject.refused(Precondition, naming=made.name):
            subject.facet(DataPath).fill_from_file(subject.id(made), path, Format.RAW, lambda _done: None)
        with subject.refused(Precondition, naming=made.name):
            subject.facet(DataPath).image(subject.id(made), writable=True)

    @proves(Level.CONTRACT, DataPath, wire=False)
    def test_filling_tells_how_far_it_is(self, subject: Opened) -> None:
        """The progress goes up, from 0 to 1 at the most, and ends with 1."""
        made, told = subject.create(incomplete=True, size=subject.size(4)), list[float]()
        path = subject.image(subject.pages(made), made.size)
        subject.facet(DataPath).fill_from_file(subject.id(made), path, Format.RAW, told.append)
        assert told == sorted(told) and told[0] >= 0.0 and told[-1] == 1.0

    @proves(Level.CONTRACT, DataPath, wire=False)
    def test_only_what_exists_has_an_image(self, subject: Subject) -> None:
        """The image of a volume, or of a snapshot, that does not exist is NotFound."""
        made = subject.create()
        for meant, snapshot in ((VolumeId(subject.name(), str(uuid.uuid4())), ""), (subject.id(made), str(uuid.uuid4()))):
            with subject.refused(NotFound):
                subject.facet(DataPath).image(meant, snapshot)

    # -- adoption

    @proves(Level.CONTRACT, Adopts, wire=False)
    def test_what_others_made_is_listed_and_let_alone(self, subject: Subject, make_foreign: MakeForeign) -> None:
        """An object without our tag is listed as foreign, is no volume, and is there after everything that is done to volumes."""
        locator = make_foreign(subject.size())
        for _ in range(2):
            found = {foreign.locator: foreign for foreign in subject.facet(Adopts).list_foreign()}
            assert found[locator].size == subject.size() and found[locator].reason
            made = subject.create()
            subject.delete(made)
            subject.reopen()
        assert locator not in [volume.name for volume in subject.backend.list_volumes()]

    @proves(Level.CONTRACT, Adopts, wire=False)
    def test_an_adopted_object_is_a_volume(self, subject: Subject, make_foreign: MakeForeign) -> None:
        """`adopt_volume` makes a volume of an object, named, tagged and labelled as asked; it is foreign no more; a repeat is the same."""
        locator = make_foreign(subject.size())
        spec = subject.spec(labels={"from": "old"}, format=Format.RAW)
        told = [subject.facet(Adopts).adopt_volume(locator, spec) for _ in range(2)]
        assert told[0] == told[1] == subject.get(spec.name)
        assert (told[0].uid, told[0].size, told[0].labels, told[0].state) == (spec.uid, subject.size(), {"from": "old"}, VolumeState.READY)
        assert locator not in {foreign.locator for foreign in subject.facet(Adopts).list_foreign()}

    @proves(Level.CONTRACT, Adopts, wire=False)
    def test_only_what_exists_is_adopted(self, subject: Subject) -> None:
        """Adopting what is not there is NotFound, and makes nothing."""
        spec = subject.spec(format=Format.RAW)
        with subject.refused(NotFound):
            subject.facet(Adopts).adopt_volume(subject.name("nothing"), spec)
        with subject.refused(NotFound):
            subject.get(spec.name)

    # -- layers under a guest

    @proves(Level.CONTRACT, Overlays, wire=False)
    def test_an_overlay_becomes_the_top(self, subject: Subject) -> None:
        """Prepared, an overlay lies on what the volume has; finished, it is the top and the rest a snapshot; repeats change nothing."""
        made, cut = _layered(subject), subject.cut()
        overlays = subject.facet(Overlays)
        base = subject.backend.connection(subject.id(made), host="conformance")
        prepared = [overlays.prepare_overlay(subject.id(made), cut) for _ in range(2)]
        assert prepared[0] == prepared[1]
        assert prepared[0].base == base.source != prepared[0].top.source
        assert subject.backend.connection(subject.id(made), host="conformance") == base, "QEMU has not switched yet"
        assert subject.snapshots(made) == []
        told = [overlays.finish_overlay(subject.id(made), cut) for _ in range(2)]
        assert told[0] == told[1] and subject.snapshots(made) == told[:1]
        top = as_file(subject.backend.connection(subject.id(made), host="conformance"))
        assert (top.path, top.chain[0][0]) == (prepared[0].top.source, base.source)
        assert subject.get(made).depth == made.depth + 1

    @proves(Level.CONTRACT, Overlays, wire=False)
    def test_an_abandoned_overlay_leaves_nothing(self, subject: Subject) -> None:
        """An overlay that QEMU never switched to goes; a repeat, or none at all, is success; another may be prepared."""
        made, cut = _layered(subject), subject.cut()
        overlays = subject.facet(Overlays)
        before = subject.backend.connection(subject.id(made), host="conformance")
        overlays.prepare_overlay(subject.id(made), cut)
        for _ in range(2):
            overlays.abandon_overlay(subject.id(made), cut.uid)
        assert subject.backend.connection(subject.id(made), host="conformance") == before
        assert subject.snapshots(made) == [] and subject.get(made).depth == made.depth
        other = subject.cut()
        overlays.prepare_overlay(subject.id(made), other)
        assert overlays.finish_overlay(subject.id(made), other).uid == other.uid

    @proves(Level.CONTRACT, Overlays, wire=False)
    def test_an_overlay_that_was_not_prepared_is_not_finished(self, subject: Subject) -> None:
        """`finish_overlay` without `prepare_overlay` is refused, and cuts no snapshot."""
        made = _layered(subject)
        with pytest.raises((Precondition, NotFound)):
            subject.facet(Overlays).finish_overlay(subject.id(made), subject.cut())
        assert subject.snapshots(made) == []

    @proves(Level.CONTRACT, Overlays, wire=False)
    def test_layers_that_nothing_needs_are_merged(self, subject: Subject) -> None:
        """`collapse_layers` merges what no snapshot and no clone needs, tells how many went, and then finds nothing more to do."""
        made = _layered(subject)
        overlays, cuts = subject.facet(Overlays), [subject.cut() for _ in range(2)]
        for cut in cuts:
            overlays.prepare_overlay(subject.id(made), cut)
            overlays.finish_overlay(subject.id(made), cut)
        assert (overlays.collapse_layers(subject.id(made)), subject.get(made).depth) == (0, 2)
        for cut in cuts:
            overlays.delete_snapshot(subject.id(made), cut.uid)
        assert overlays.collapse_layers(subject.id(made)) == 2
        assert (overlays.collapse_layers(subject.id(made)), subject.get(made).depth) == (0, 0)


def _layered(subject: Subject) -> Volume:
    """A volume of a format that has layers."""
    return subject.create(format=Format.QCOW2)
