"""Deleted volumes come back whole, or are told to be gone; clones keep what they lie on."""

from __future__ import annotations

import os
import uuid

import pytest

from tests.plugins.directory_rig import MIB, Rig, io
from volgate.backend import SnapshotSpec, VolumeId
from volgate.errors import AlreadyExists, DataLoss, NotFound, OutOfSpace, Precondition
from volgate.model import Format
from volgate.names import object_name
from volgate_plugins.directory import trash
from volgate_plugins.directory.manifest import Child


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool", trash_seconds=3600)


def only_deleted(rig):
    (found,) = rig.backend.list_foreign()
    return found


def undelete(rig, locator, name, kind=Format.QCOW2, **more):
    spec = rig.spec(name, 0, kind, **more)
    assert rig.backend.adopt_volume(locator, spec).uid == spec.uid
    return VolumeId(name, spec.uid)


@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2])
def test_a_deleted_volume_comes_back_with_data_and_labels_under_a_new_uid(rig, kind):
    one = rig.create("a", format=kind, labels={"k": "v"})
    rig.write(one, 7)
    rig.backend.delete_volume(one)
    found = only_deleted(rig)
    assert (found.size, found.format) == (8 * MIB, kind)
    assert "volume a, deleted" in found.reason
    back = undelete(rig, found.locator, "a", kind)
    assert back.uid != one.uid
    rig.reads(back, 7)
    assert rig.backend.get_volume("a").labels == {"k": "v"}
    assert not list(rig.backend.list_foreign())
    rig.reopen()
    rig.reads(back, 7)
    rig.backend.delete_volume(one)
    assert rig.backend.get_volume("a").uid == back.uid, "the old uid deletes nothing of the new volume"


def test_layers_come_back_and_can_be_reverted(rig):
    one = rig.create("a")
    rig.write(one, 1)
    cut = rig.snapshot(one, "s")
    rig.write(one, 2)
    rig.backend.delete_snapshot(one, cut)
    rig.backend.delete_volume(one)
    back = undelete(rig, only_deleted(rig).locator, "b")
    rig.reads(back, 2)
    rig.checked()


def test_the_same_undelete_twice_is_one(rig):
    one = rig.create("a")
    rig.backend.delete_volume(one)
    locator, uid = only_deleted(rig).locator, str(uuid.uuid4())
    assert undelete(rig, locator, "a", uid=uid) == undelete(rig, locator, "a", uid=uid)
    with pytest.raises(AlreadyExists):
        undelete(rig, locator, "a")
    with pytest.raises(NotFound, match="trash_seconds"):
        undelete(rig, locator, "other")


def test_a_clone_comes_back_and_holds_its_source_again(rig):
    source = rig.create("source")
    rig.write(source, 3)
    cut = rig.snapshot(source, "s")
    rig.write(source, 4)
    clone = rig.clone("clone", source, cut)
    rig.backend.delete_volume(clone)
    back = undelete(rig, only_deleted(rig).locator, "clone")
    rig.reads(back, 3)
    with pytest.raises(Precondition, match="clone"):
        rig.backend.delete_volume(source)
    rig.backend.collapse_layers(source)
    rig.reads(back, 3)
    rig.reads(source, 4)


def test_a_clone_whose_source_is_gone_stays_in_the_trash(rig):
    source = rig.create("source")
    clone = rig.clone("clone", source)
    rig.backend.delete_volume(clone)
    rig.backend.delete_volume(source)
    locator = next(found.locator for found in rig.backend.list_foreign() if "clone" in found.reason)
    with pytest.raises(DataLoss, match="gone"):
        undelete(rig, locator, "clone")
    assert locator in [found.locator for found in rig.backend.list_foreign()]


def test_another_format_or_a_path_is_refused(rig):
    rig.backend.delete_volume(rig.create("a"))
    locator = only_deleted(rig).locator
    with pytest.raises(Precondition, match="qcow2"):
        undelete(rig, locator, "a", Format.RAW)
    for bad in ("trash:", "trash:../volumes", "trash:.work"):
        with pytest.raises(Exception, match="not a deleted volume"):
            undelete(rig, bad, "a")


def test_a_check_empties_what_is_old_enough(rig):
    rig.backend.delete_volume(rig.create("a"))
    rig.backend.check()
    assert len(list(rig.backend.list_foreign())) == 1
    entry = next((rig.path / ".trash").iterdir())
    stem = entry.name.rpartition(".")[0]
    entry.rename(entry.with_name(f"{stem}.1"))
    rig.backend.check()
    assert not list(rig.backend.list_foreign())
    assert not [name for name in rig.files() if "gone" in name]


def test_what_is_in_the_trash_is_read_as_it_was(rig):
    one = rig.create("a", format=Format.RAW)
    rig.write(one, 9)
    rig.backend.delete_volume(one)
    file = next((rig.path / ".trash").glob("*/0000.raw"))
    io("raw", f"read -P 9 0 {MIB}", str(file), "-r")


def entry_of(rig):
    (entry,) = (rig.path / ".trash").iterdir()
    return entry


def test_the_time_of_the_deletion_is_told(rig):
    rig.backend.delete_volume(rig.create("a"))
    entry = entry_of(rig)
    entry.rename(entry.with_name(f"{entry.name.rpartition('.')[0]}.1700000000000000000"))
    assert "deleted 2023-11-14 22:13:20Z" in only_deleted(rig).reason


def test_what_cannot_be_read_in_the_trash_is_not_offered(rig):
    rig.backend.delete_volume(rig.create("a"))
    locator = only_deleted(rig).locator
    assert trash.parent_of(rig.backend._store, locator) == trash.parent_of(rig.backend._store, "trash:nothing.1") == ""
    (entry_of(rig) / "volume.json").write_bytes(b"{}")
    assert not list(rig.backend.list_foreign())
    with pytest.raises(DataLoss):
        undelete(rig, locator, "a")
    (entry_of(rig) / "volume.json").unlink()
    assert not list(rig.backend.list_foreign())


def test_an_undeleted_volume_has_new_labels_if_some_are_given_and_is_a_generation_on(rig):
    rig.backend.delete_volume(rig.create("a", labels={"k": "v"}))
    generation = 1
    for labels in ({"new": "1"}, {}):
        back = undelete(rig, only_deleted(rig).locator, "a", labels=labels)
        generation += 1
        found = rig.backend.get_volume("a")
        assert (found.labels, found.generation) == ({"new": "1"}, generation)
        assert rig.backend.capacity().provisioned == found.size == 8 * MIB
        rig.backend.delete_volume(back)
        assert rig.backend.capacity().provisioned == 0


def test_what_waited_for_a_guest_does_not_come_back(rig):
    one = rig.create("a")
    rig.write(one, 1)
    rig.backend.prepare_overlay(one, SnapshotSpec("s", str(uuid.uuid4())))
    rig.backend.delete_volume(one)
    back = undelete(rig, only_deleted(rig).locator, "a")
    rig.snapshot(back, "s")
    rig.reads(back, 1)


def test_more_than_may_be_promised_stays_in_the_trash(tmp_path):
    total = os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    rig = Rig(tmp_path / "pool", trash_seconds=3600, oversubscription=10 * MIB / total)
    rig.backend.delete_volume(rig.create("a"))
    other = rig.create("b")
    with pytest.raises(OutOfSpace):
        undelete(rig, only_deleted(rig).locator, "a")
    rig.backend.delete_volume(other)
    undelete(rig, next(found.locator for found in rig.backend.list_foreign() if "volume a," in found.reason), "a")


def test_a_clone_of_many_layers_is_noted_once_in_its_source(rig):
    source = rig.create("source")
    rig.write(source, 3)
    clone = rig.clone("clone", source)
    cut = rig.snapshot(clone, "s")
    rig.write(clone, 4, MIB)
    rig.backend.delete_snapshot(clone, cut)
    spec = rig.spec("other", 0, Format.QCOW2)
    rig.backend.delete_volume(clone)
    locator = only_deleted(rig).locator
    assert rig.backend.children(source) == []
    sibling = rig.clone("sibling", source)
    assert trash.parent_of(rig.backend._store, locator) == "source"
    origin, manifest = rig.backend._store.find(source)
    begun = Child(object_name(spec.name, spec.uid), manifest.content.children[-1].layer)
    rig.backend._store.save(origin, manifest.change(children=(*manifest.content.children, begun)))  # as an undelete that died here
    for _ in range(2):
        assert rig.backend.adopt_volume(locator, spec).uid == spec.uid
    assert rig.backend.children(source) == ["other", "sibling"]
    rig.backend.collapse_layers(source)
    back = VolumeId("other", spec.uid)
    rig.reads(back, 3)
    rig.reads(back, 4, MIB)
    rig.reads(sibling, 3)


@pytest.mark.parametrize("gone", ["source", "layer"])
def test_a_clone_whose_layers_are_gone_is_not_undeleted(rig, gone):
    source = rig.create("source")
    rig.write(source, 3)
    clone = rig.clone("clone", source)
    rig.backend.delete_volume(clone)
    locator = only_deleted(rig).locator
    if gone == "source":
        rig.backend.delete_volume(source)
        rig.create("source")
    else:
        assert rig.backend.collapse_layers(source) == 1
    before = rig.files()
    with pytest.raises(DataLoss) as caught:
        undelete(rig, locator, "clone")
    assert caught.value.reason == "LAYER_MISSING" and rig.files() == before


def test_the_trash_is_emptied_of_what_is_old_alone(rig):
    for name in ("a", "b"):
        rig.backend.delete_volume(rig.create(name))
    (rig.path / ".trash" / "strange").mkdir()
    (rig.path / ".trash" / "strange.name").mkdir()
    (old,) = (rig.path / ".trash").glob("a.*")
    old.rename(old.with_name(f"{old.name.rpartition('.')[0]}.1"))
    rig.backend.check()
    assert sorted(path.name.partition(".")[0] for path in (rig.path / ".trash").iterdir()) == ["b", "strange", "strange"]
