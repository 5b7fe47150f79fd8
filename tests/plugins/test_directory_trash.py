"""Deleted volumes come back whole, or are told to be gone; clones keep what they lie on."""

from __future__ import annotations

import uuid

import pytest

from tests.plugins.directory_rig import MIB, Rig, io
from volgate.backend import VolumeId
from volgate.errors import AlreadyExists, DataLoss, NotFound, Precondition
from volgate.model import Format


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
