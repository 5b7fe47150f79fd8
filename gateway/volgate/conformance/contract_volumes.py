"""Level 1, volumes: the words of every call, repeats, errors, names."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import pytest

from volgate.backend import Backend, Measures, PathsSeen, Relabels, Resizes, VolumeId
from volgate.conformance.cases import Level, proves
from volgate.conformance.subject import Subject
from volgate.errors import AlreadyExists, InvalidRequest, NotFound, OutOfRange, OutOfSpace, Precondition, Unsupported
from volgate.model import Format, Health, Path, PathState, VolumeState

__all__ = ["VolumeContract"]

LABELS = {"team": "storage", "empty": "", "a.b/c-d_e": "x" * 128}
_CLOCK = 300.0  # seconds that the clocks of storage and gateway may differ


class VolumeContract:
    """What holds for every pool, and for volumes that grow, are labelled, measured and seen."""

    @proves(Level.CONTRACT)
    def test_a_new_volume_is_as_asked(self, subject: Subject) -> None:
        """`create_volume` answers with the name, the uid, the format and the provisioning that were asked for, ready."""
        spec = subject.spec()
        made = subject.backend.create_volume(spec)
        assert (made.name, made.format, made.provisioning, made.state) == (spec.name, spec.format, spec.provisioning, VolumeState.READY)
        assert subject.wire or made.uid == spec.uid
        assert uuid.UUID(made.uid) and made.object and not made.problem and made.depth == 0

    @proves(Level.CONTRACT)
    def test_every_format_can_be_made(self, subject: Subject) -> None:
        """Every format of the traits can be made, and is told."""
        for form in subject.traits.formats:
            assert subject.create(format=form).format == form

    @proves(Level.CONTRACT)
    def test_sizes_round_up_to_the_grain(self, subject: Subject) -> None:
        """A size is rounded up to the next multiple of the grain and never down; `requested_size` stays what was asked."""
        grain = subject.traits.grain
        for asked in (subject.size() + 1, subject.size() + grain - 1, subject.size()):
            made = subject.create(size=asked)
            assert made.size == -(-asked // grain) * grain
            assert subject.wire or made.requested_size == asked

    @proves(Level.CONTRACT)
    def test_what_was_created_is_what_is_read(self, subject: Subject) -> None:
        """`get_volume` and `list_volumes` tell the same of a volume as its creation did."""
        made = [subject.backend.create_volume(subject.spec(size=subject.size(units))) for units in (1, 2)]
        assert [subject.get(volume) for volume in made] == made
        assert all(volume in subject.listed() for volume in made)

    @proves(Level.CONTRACT)
    def test_labels_are_kept_as_given(self, subject: Subject) -> None:
        """A new volume has the labels that it was given, empty values included, and no others."""
        assert subject.create(labels=LABELS).labels == LABELS
        assert subject.create().labels == {}

    @proves(Level.CONTRACT)
    def test_times_are_utc_seconds(self, subject: Subject) -> None:
        """`created_at` is the time of the creation, in seconds since 1970, and stays."""
        made = subject.create()
        assert abs(made.created_at - time.time()) < _CLOCK
        assert subject.get(made).created_at == made.created_at

    @proves(Level.CONTRACT)
    def test_a_repeated_creation_creates_nothing(self, subject: Subject) -> None:
        """The same creation again answers with the same volume."""
        spec = subject.spec()
        first = subject.backend.create_volume(spec)
        assert [subject.backend.create_volume(spec) for _ in range(2)] == [first, first]
        assert [volume.name for volume in subject.listed()].count(spec.name) == 1

    @proves(Level.CONTRACT)
    def test_a_name_that_is_taken_is_refused(self, subject: Subject) -> None:
        """Another volume of the same name is AlreadyExists, and leaves the first as it is."""
        made = subject.create()
        with subject.refused(AlreadyExists, naming=made.name):
            subject.backend.create_volume(subject.spec(made.name, size=subject.size(2)))
        assert subject.get(made) == made

    @proves(Level.CONTRACT)
    def test_a_format_that_is_not_offered_is_refused(self, subject: Subject) -> None:
        """A format that the traits do not name is Unsupported or InvalidRequest, and nothing is made."""
        strange = next(form for form in (Format.VMDK, *Format) if form not in subject.traits.formats)
        spec = subject.spec(format=strange)
        with subject.refused(Unsupported, InvalidRequest):
            subject.backend.create_volume(spec)
        with subject.refused(NotFound):
            subject.get(spec.name)

    @proves(Level.CONTRACT)
    def test_a_size_beyond_the_limit_is_refused(self, subject: Subject) -> None:
        """More than `traits.maximum` is OutOfRange, or no space; nothing is made."""
        spec = subject.spec(size=subject.traits.maximum + subject.traits.grain)
        with subject.refused(OutOfRange, OutOfSpace, InvalidRequest):
            subject.backend.create_volume(spec)
        with subject.refused(NotFound):
            subject.get(spec.name)

    @proves(Level.CONTRACT)
    def test_every_name_is_a_name_of_its_own(self, subject: Subject) -> None:
        """Names of one letter and of 63, with dots, dashes and underscores, and names that begin with one another, are kept apart."""
        stem = subject.name("n")
        names = [stem, f"{stem}.x", f"{stem}.x.0123abcd", f"{stem}-x", f"{stem}_x", f"{stem}x", f"{stem}-{'y' * 63}"[:63]]
        made = {name: subject.create(name) for name in subject.random.sample(names, len(names))}
        assert sorted(volume.name for volume in subject.listed() if volume.name in made) == sorted(names)
        subject.delete(made[stem])
        assert [subject.get(name) for name in names[1:]] == [made[name] for name in names[1:]]
        with subject.refused(NotFound):
            subject.get(stem)

    @proves(Level.CONTRACT)
    def test_the_list_is_in_order(self, subject: Subject) -> None:
        """`list_volumes` yields every volume once, in order of name."""
        stem = subject.name("o")
        names = [f"{stem}{letter}" for letter in "badc90"]
        for name in names:
            subject.create(name)
        listed = [volume.name for volume in subject.listed() if volume.name.startswith(stem)]
        assert listed == sorted(names)

    @proves(Level.CONTRACT)
    def test_what_is_not_there_is_not_found(self, subject: Subject) -> None:
        """Reading a volume that does not exist is NotFound, naming it."""
        name = subject.name()
        with subject.refused(NotFound, naming=name):
            subject.get(name)

    @proves(Level.CONTRACT)
    def test_a_deleted_volume_is_gone(self, subject: Subject) -> None:
        """A deleted volume is neither found nor listed."""
        made = subject.create()
        subject.delete(made)
        with subject.refused(NotFound):
            subject.get(made)
        assert made.name not in [volume.name for volume in subject.listed()]

    @proves(Level.CONTRACT)
    def test_a_repeated_deletion_succeeds(self, subject: Subject) -> None:
        """Deleting what is gone, or never was, is success."""
        made = subject.create()
        for _ in range(2):
            subject.delete(made)
        subject.backend.delete_volume(VolumeId(subject.name(), str(uuid.uuid4())))

    @proves(Level.CONTRACT)
    def test_a_late_deletion_spares_the_newer_volume(self, subject: Subject) -> None:
        """A repeated deletion of an older volume leaves the newer one of the same name alone."""
        old = subject.create()
        subject.delete(old)
        new = subject.create(old.name)
        subject.delete(old)
        assert subject.get(new) == new

    @proves(Level.CONTRACT)
    def test_a_new_volume_is_a_new_object(self, subject: Subject) -> None:
        """A volume that has the name of an earlier one is another object on the storage: late writers and trash never meet it."""
        old = subject.create()
        subject.delete(old)
        assert subject.create(old.name).object != old.object

    @proves(Level.CONTRACT)
    def test_the_check_of_a_good_pool_is_ok(self, subject: Subject) -> None:
        """`check` says OK, without a message, as often as it is asked."""
        for _ in range(3):
            found = subject.backend.check()
            assert (found.health, found.message) == (Health.OK, "")

    @proves(Level.CONTRACT)
    def test_traits_make_sense_and_stay(self, subject: Subject) -> None:
        """Formats are named once, sizes fit each other, and nothing changes while the pool is open or when it is opened anew."""
        before = subject.traits
        assert before.formats and len(set(before.formats)) == len(before.formats)
        assert before.grain > 0 and 0 < before.minimum <= before.maximum and before.maximum % before.grain == 0
        assert before.online_snapshots in ("", "native", "overlay") and before.max_depth >= 0
        subject.create()
        assert subject.traits == before
        subject.reopen()
        assert subject.traits == before

    @proves(Level.CONTRACT, wire=False)
    def test_a_connection_belongs_to_one_volume(self, subject: Subject) -> None:
        """How a volume is reached is told of the uid that was asked for only: else NotFound or Precondition."""
        made = subject.create()
        assert subject.backend.connection(subject.id(made), host="conformance")
        with subject.refused(NotFound, Precondition):
            subject.backend.connection(replace(subject.id(made), uid=str(uuid.uuid4())), host="conformance")
        with subject.refused(NotFound):
            subject.backend.connection(VolumeId(subject.name(), str(uuid.uuid4())), host="conformance")

    # -- volumes that grow

    @proves(Level.CONTRACT, Resizes)
    def test_a_volume_grows(self, subject: Subject) -> None:
        """`expand_volume` grows to the size asked, rounded up to the grain, and answers with it; so does a repeat."""
        made, grain = subject.create(), subject.traits.grain
        asked = subject.size(2) + 1
        for _ in range(2):
            grown = subject.facet(Resizes).expand_volume(subject.id(made), asked, online=False)
            assert grown.size == -(-asked // grain) * grain == subject.get(made).size
        assert (grown.name, grown.uid, grown.format) == (made.name, made.uid, made.format)

    @proves(Level.CONTRACT, Resizes)
    def test_a_volume_never_shrinks(self, subject: Subject) -> None:
        """Growing to the same or a smaller size is success without any change."""
        made = subject.create(size=subject.size(2))
        for asked in (subject.size(2), subject.size(), 1):
            assert subject.facet(Resizes).expand_volume(subject.id(made), asked, online=False).size == made.size
        assert subject.get(made).size == made.size

    @proves(Level.CONTRACT, Resizes)
    def test_only_the_meant_volume_grows(self, subject: Subject) -> None:
        """Growing a volume that does not exist, or whose name another has now, is NotFound or Precondition."""
        made = subject.create()
        for meant in (VolumeId(subject.name(), str(uuid.uuid4())), VolumeId(made.name, str(uuid.uuid4()))):
            with subject.refused(NotFound, Precondition, naming=meant.name):
                subject.facet(Resizes).expand_volume(meant, subject.size(2), online=False)
        assert subject.get(made) == made

    @proves(Level.CONTRACT, Resizes)
    def test_a_repeated_creation_finds_a_grown_volume(self, subject: Subject) -> None:
        """A repeat of the creation after an expansion answers with the volume: what was asked for is compared, not the size now."""
        spec = subject.spec()
        made = subject.backend.create_volume(spec)
        grown = subject.facet(Resizes).expand_volume(subject.id(made), subject.size(2), online=False)
        if not subject.wire:  # there the recorded answer is given
            assert grown.requested_size == spec.size
            told = subject.backend.create_volume(spec)
            assert (told.uid, told.size) == (grown.uid, grown.size)

    # -- labels

    @proves(Level.CONTRACT, Relabels)
    def test_labels_are_replaced_whole(self, subject: Subject) -> None:
        """`relabel_volume` replaces all labels; a repeat changes nothing more, and nothing else changes."""
        made = subject.create(labels={"first": "1"})
        for labels in ({"other": "1"}, {"other": "1"}, {}, LABELS):
            told = subject.facet(Relabels).relabel_volume(subject.id(made), labels)
            assert told.labels == subject.get(made).labels == labels
        assert replace(subject.get(made), generation=made.generation, labels=made.labels) == made

    @proves(Level.CONTRACT, Relabels)
    def test_only_the_meant_volume_is_labelled(self, subject: Subject) -> None:
        """Labelling a volume that does not exist, or whose name another has now, is NotFound or Precondition."""
        made = subject.create()
        for meant in (VolumeId(subject.name(), str(uuid.uuid4())), VolumeId(made.name, str(uuid.uuid4()))):
            with subject.refused(NotFound, Precondition, naming=meant.name):
                subject.facet(Relabels).relabel_volume(meant, {"a": "b"})
        assert subject.get(made) == made

    # -- space

    @proves(Level.CONTRACT, Measures)
    def test_capacity_adds_up(self, subject: Subject) -> None:
        """There is no more free than there is, and at least as much promised as the volumes have."""
        made = [subject.create() for _ in range(2)]
        found = subject.facet(Measures).capacity()
        assert 0 <= found.free <= found.total and found.limit >= 0
        assert found.provisioned >= sum(volume.size for volume in made)

    @proves(Level.CONTRACT, Measures)
    def test_what_is_promised_is_counted(self, subject: Subject) -> None:
        """Creation adds a volume's size to what is promised, deletion takes it away."""
        measures = subject.facet(Measures)
        before = measures.capacity().provisioned
        made = subject.create(size=subject.size(3))
        assert measures.capacity().provisioned == before + made.size
        subject.delete(made)
        assert measures.capacity().provisioned == before

    @proves(Level.CONTRACT, Measures, Resizes)
    def test_growth_is_counted(self, subject: Subject) -> None:
        """Expansion adds what a volume grows by to what is promised, once."""
        measures, made = subject.facet(Measures), subject.create()
        before = measures.capacity().provisioned
        for _ in range(2):
            grown = subject.facet(Resizes).expand_volume(subject.id(made), subject.size(3), online=False)
        assert measures.capacity().provisioned == before + grown.size - made.size

    @proves(Level.CONTRACT, Measures)
    def test_no_more_is_promised_than_the_limit(self, subject: Subject) -> None:
        """A volume beyond the pool's limit is OutOfSpace, and leaves nothing; a pool without a limit promises what it is asked for."""
        found = subject.facet(Measures).capacity()
        left = (found.limit - found.provisioned) // subject.traits.grain * subject.traits.grain
        spec = subject.spec(size=left + subject.traits.grain)
        if not found.limit or spec.size > subject.traits.maximum:
            assert subject.backend.create_volume(subject.spec())
            return
        with subject.refused(OutOfSpace, naming=spec.name if not subject.wire else ""):
            subject.backend.create_volume(spec)
        with subject.refused(NotFound):
            subject.get(spec.name)
        assert subject.facet(Measures).capacity().provisioned == found.provisioned

    @proves(Level.CONTRACT, Measures, Resizes)
    def test_no_volume_grows_beyond_the_limit(self, subject: Subject) -> None:
        """Growth beyond the pool's limit is OutOfSpace, and changes neither the volume nor what is promised."""
        made, resizes = subject.create(), subject.facet(Resizes)
        found = subject.facet(Measures).capacity()
        left = (found.limit - found.provisioned) // subject.traits.grain * subject.traits.grain
        asked = made.size + left + subject.traits.grain
        if not found.limit or asked > subject.traits.maximum:
            assert resizes.expand_volume(subject.id(made), subject.size(2), online=False).size == subject.size(2)
            return
        with subject.refused(OutOfSpace, naming=made.name if not subject.wire else ""):
            resizes.expand_volume(subject.id(made), asked, online=False)
        assert subject.get(made) == made
        assert subject.facet(Measures).capacity().provisioned == found.provisioned

    # -- paths

    @proves(Level.CONTRACT, PathsSeen)
    def test_every_path_says_what_it_is(self, subject: Subject) -> None:
        """Each path has a transport and a state; a healthy volume has one that works; a missing volume is NotFound."""
        made = subject.create()
        found = list(subject.facet(PathsSeen).paths(subject.id(made)))
        assert all(isinstance(path, Path) and path.transport and path.errors >= 0 for path in found)
        assert any(path.state in (PathState.ACTIVE, PathState.ACTIVE_OPTIMIZED) for path in found)
        with subject.refused(NotFound):
            subject.facet(PathsSeen).paths(VolumeId(subject.name(), str(uuid.uuid4())))

    # -- the pool itself

    @proves(Level.CONTRACT, wire=False)
    def test_another_gateways_pool_is_refused(self, subject: Subject) -> None:
        """A pool that belongs to another gateway is not opened (Precondition), and goes on to serve its own."""
        made = subject.create()
        with pytest.raises(Precondition):
            subject.open("ffffffff-0000-4000-8000-00000000000f").close()  # type: ignore[attr-defined]  # not asked for over the wire
        assert subject.get(made) == made
        assert isinstance(subject.backend, Backend) and subject.backend.check().health is Health.OK
