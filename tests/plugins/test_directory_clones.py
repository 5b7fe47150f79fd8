"""Clones and snapshots: what they lie on, what they need, and when they are refused."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.plugins.directory_rig import MIB, Rig, mounted
from volgate.backend import SnapshotSpec, VolumeId
from volgate.errors import AlreadyExists, DataLoss, InUse, NotFound, OutOfRange, OutOfSpace, Precondition, Unsupported
from volgate.model import Format, Provisioning, Source, SourceKind
from volgate_plugins.directory.manifest import Merge

MIDDLE_UID = "88888888-0000-4000-8000-000000000000"
OTHER_UIDS = ("00000000-0000-4000-8000-000000000000", "ffffffff-0000-4000-8000-000000000000")


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool")


def depth(rig, volume: VolumeId) -> int:
    return rig.backend.get_volume(volume.name).depth


def layers(rig, volume: VolumeId) -> set[str]:
    return {path.name for path in (rig.path / "volumes" / rig.backend.get_volume(volume.name).object).iterdir()}


def test_a_clone_of_an_unfinished_volume_or_of_another_format_is_refused(rig):
    one = rig.create("a", incomplete=True)
    with pytest.raises(Precondition) as caught:
        rig.clone("c", one)
    assert caught.value.reason == "NOT_READY"
    with pytest.raises(Precondition) as caught:
        rig.snapshot(one, "s")
    assert caught.value.reason == "NOT_READY"
    rig.backend.complete(one)
    with pytest.raises(Unsupported) as caught:
        rig.clone("c", one, format=Format.RAW)
    assert (caught.value.reason, caught.value.field) == ("FORMAT_DIFFERS", "format")
    with pytest.raises(Unsupported) as caught:
        rig.clone("c", one, provisioning=Provisioning.THICK)
    assert caught.value.field == "provisioning"
    assert [volume.name for volume in rig.backend.list_volumes()] == ["a"] and not list((rig.path / ".work").iterdir())


@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2])
def test_a_clone_is_as_large_as_its_source_or_larger(rig, kind):
    one = rig.create("a", 2 * MIB, kind)
    rig.write(one, 7)
    for number, size in enumerate((2 * MIB, 2 * MIB + 1, 5 * MIB)):
        clone = rig.clone(f"c{number}", one, size=size, format=kind)
        assert rig.backend.get_volume(clone.name).size == -(-size // 4096) * 4096
        rig.reads(clone, 7)
        rig.reads(clone, 0, MIB)
    for size in (2 * MIB - 1, 4096):
        with pytest.raises(OutOfRange):
            rig.clone("less", one, size=size, format=kind)


def test_an_empty_source_is_no_source(rig):
    for kind in (Format.RAW, Format.QCOW2):
        spec = rig.spec(f"v-{kind}", MIB, kind, source=Source(SourceKind.EMPTY, "", ""))
        assert rig.backend.bytes_to_copy(spec) == rig.backend.bytes_to_copy(rig.spec("x", MIB, kind)) == 0
        assert rig.backend.create_volume(spec).size == MIB


def test_only_a_raw_clone_is_ever_a_copy(rig):
    for kind in (Format.QCOW2, Format.RAW):
        one = rig.create(f"v-{kind}", 4 * MIB, kind)
        rig.write(one, 3, 0, 2 * MIB)
        cut = Source(SourceKind.VOLUME, one.name, one.uid)
        for size in (4 * MIB, 9 * MIB):
            told = rig.backend.bytes_to_copy(rig.spec("c", size, kind, source=cut, provisioning=Provisioning.THICK))
            assert told == 0 if kind is Format.QCOW2 else 2 * MIB <= told <= 4 * MIB
    rig.write(one, 3, 0, 4 * MIB)
    assert rig.backend.bytes_to_copy(rig.spec("c", 9 * MIB, kind, source=cut, provisioning=Provisioning.THICK)) == 4 * MIB


def test_a_thick_raw_clone_has_all_of_its_space(rig):
    one = rig.create("a", MIB, Format.RAW)
    rig.write(one, 3, 0, 4096)
    clone = rig.clone("c", one, size=5 * MIB, format=Format.RAW, provisioning=Provisioning.THICK)
    assert rig.backend.get_volume("c").allocated >= 5 * MIB
    rig.reads(clone, 3, 0, 4096)
    rig.reads(clone, 0, 4096, 5 * MIB - 4096)


def test_a_copy_is_not_begun_without_room_for_it(tmp_path):
    with mounted(tmp_path / "fs", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        rig = Rig(folder)
        one = rig.create("a", 40 * MIB, Format.RAW)
        rig.write(one, 1, 0, 30 * MIB)
        free = rig.backend.capacity().free
        assert free < 30 * MIB
        for provisioning, needs in ((Provisioning.THIN, 30 * MIB), (Provisioning.THICK, 40 * MIB)):
            with pytest.raises(OutOfSpace) as caught:
                rig.clone("c", one, size=40 * MIB, format=Format.RAW, provisioning=provisioning)
            assert f"needs {needs} bytes" in caught.value.message
        assert abs(rig.backend.capacity().free - free) < MIB
        with pytest.raises(OutOfSpace, match=f"needs {40 * MIB} bytes"):
            rig.create("t", 40 * MIB, provisioning=Provisioning.THICK)


def test_only_a_volume_that_was_written_to_gets_a_layer_more_by_a_clone(rig):
    one = rig.create("a", MIB)
    depths = []
    for number in range(2):
        rig.clone(f"c{number}", one, size=MIB)
        depths.append(depth(rig, one))
    assert depths == [1, 1], "the first clone freezes what there is, the second finds nothing new"
    rig.backend.expand_volume(one, 2 * MIB, online=False)
    rig.clone("c2", one, size=2 * MIB)
    assert depth(rig, one) == 2, "its size is new"
    rig.write(one, 1)
    rig.clone("c3", one, size=2 * MIB)
    assert depth(rig, one) == 3, "its bytes are new"
    clone = rig.clone("c4", rig.clone("c5", one, size=2 * MIB), size=2 * MIB)
    assert depth(rig, one) == 3
    rig.reads(clone, 1)
    assert rig.backend.children(one) == ["c0", "c1", "c2", "c3", "c5"]
    assert rig.backend.children(clone) == []


def test_a_clone_of_a_clone_has_a_layer_of_its_own(rig):
    one = rig.create("a", MIB)
    child = rig.clone("b", one, size=MIB)
    grandchild = rig.clone("c", child, size=MIB)
    chain = [path.removeprefix(f"{rig.path}/volumes/")[0] for path, _ in rig.backend.connection(grandchild, host="h").chain]
    assert chain == ["b", "a"]
    assert (depth(rig, child), depth(rig, grandchild)) == (2, 2)


def test_layers_have_their_bound_for_clones_too(tmp_path):
    rig = Rig(tmp_path / "pool", max_depth=2)
    one = rig.create("a")
    cut = rig.snapshot(one, "s")
    rig.write(one, 1)
    second = rig.snapshot(one, "t")
    rig.write(one, 2)
    for snapshot in ("", second):
        if not snapshot:
            with pytest.raises(Precondition) as caught:
                rig.clone("x", one)
            assert caught.value.reason == "CHAIN_TOO_DEEP"
        else:
            assert depth(rig, rig.clone("y", one, snapshot)) == 2
    child = rig.clone("z", one, cut)
    assert depth(rig, child) == 1
    rig.write(child, 1)
    rig.snapshot(child, "s")
    rig.write(child, 2)
    with pytest.raises(Precondition) as caught:
        rig.backend.prepare_overlay(child, SnapshotSpec("t", str(uuid.uuid4())))
    assert caught.value.reason == "CHAIN_TOO_DEEP"
    with pytest.raises(Precondition):
        rig.backend.revert_volume(one, second, token="t") if depth(rig, one) > 2 else rig.snapshot(one, "u")


def test_a_repeated_clone_finds_its_entry_in_the_source(rig):
    one = rig.create("a")
    cut = rig.snapshot(one, "s")
    spec = rig.spec("c", source=Source(SourceKind.SNAPSHOT, "a", one.uid, "s", cut))
    made = rig.backend.create_volume(spec)
    before = rig.backend.get_volume("a").generation
    folder = rig.path / "volumes" / made.object
    folder.rename(rig.path / "aside")  # as a creation that died before it was published
    rig.reopen()
    again = rig.backend.create_volume(spec)
    assert (again.uid, again.depth) == (made.uid, 1) and rig.backend.get_volume("a").generation == before
    assert rig.backend.children(one) == ["c"]


def test_a_clone_that_is_gone_holds_nothing(rig):
    one = rig.create("a")
    cut = rig.snapshot(one, "s")
    for snapshot in (cut, ""):
        clone = rig.clone("c", one, snapshot)
        with pytest.raises(InUse) as caught:
            rig.backend.delete_volume(one)
        assert ("volume", "c") in {(holder.kind, holder.name) for holder in caught.value.holders}
        rig.backend.delete_volume(clone)
        assert rig.backend.children(one) == []
    rig.backend.delete_snapshot(one, cut)
    assert rig.backend.collapse_layers(one) == 1 and depth(rig, one) == 0
    rig.backend.delete_volume(one)


def test_a_snapshot_is_held_by_its_own_clones_only(rig):
    one = rig.create("a")
    for number, uid in enumerate((MIDDLE_UID, *OTHER_UIDS)):
        rig.backend.create_snapshot(one, SnapshotSpec(f"s{number}", uid))
    clone = rig.clone("c", one, MIDDLE_UID)
    for uid in OTHER_UIDS:
        rig.backend.delete_snapshot(one, uid)
    with pytest.raises(InUse, match="s0"):
        rig.backend.delete_snapshot(one, MIDDLE_UID)
    rig.backend.delete_volume(clone)
    rig.backend.delete_snapshot(one, MIDDLE_UID)
    assert rig.backend.list_snapshots(one) == []


def test_another_overlay_is_neither_prepared_nor_finished_nor_abandoned(rig):
    one = rig.create("a")
    spec = SnapshotSpec("s", MIDDLE_UID)
    prepared = rig.backend.prepare_overlay(one, spec)
    for uid in OTHER_UIDS:
        with pytest.raises(Precondition) as caught:
            rig.backend.prepare_overlay(one, SnapshotSpec("t", uid))
        assert caught.value.reason == "OVERLAY_PENDING" and [holder.name for holder in caught.value.holders] == ["s"]
        with pytest.raises(Precondition) as caught:
            rig.backend.finish_overlay(one, SnapshotSpec("t", uid))
        assert caught.value.reason == "NO_OVERLAY"
        rig.backend.abandon_overlay(one, uid)
        assert rig.backend.prepare_overlay(one, spec) == prepared and Path(prepared.top.path).exists()
    for refused in (lambda: rig.snapshot(one, "t"), lambda: rig.clone("c", one)):
        with pytest.raises(Precondition) as caught:
            refused()
        assert caught.value.reason == "OVERLAY_PENDING"
    done = rig.backend.finish_overlay(one, spec)
    overlay = rig.backend.prepare_overlay(one, spec)
    assert (overlay.top.path, overlay.base) == (prepared.top.path, prepared.base) and done.size == 8 * MIB


def test_nothing_is_merged_below_an_overlay_that_waits(rig):
    one = rig.create("a")
    rig.write(one, 1)
    first = rig.snapshot(one, "s1")
    rig.write(one, 2, MIB)
    rig.backend.delete_snapshot(one, first)
    rig.backend.prepare_overlay(one, SnapshotSpec("s", MIDDLE_UID))
    before = layers(rig, one), rig.backend.get_volume("a")
    assert rig.backend.collapse_layers(one) == 0
    assert (layers(rig, one), rig.backend.get_volume("a")) == before
    rig.backend.abandon_overlay(one, MIDDLE_UID)
    assert rig.backend.collapse_layers(one) == 1


def test_a_volume_without_layers_is_left_alone_by_merging(rig):
    for name, kind, incomplete in (("raw", Format.RAW, False), ("filling", Format.QCOW2, True)):
        one = rig.create(name, format=kind, incomplete=incomplete)
        before = rig.backend.get_volume(name)
        assert rig.backend.collapse_layers(one) == 0
        assert rig.backend.get_volume(name) == before


def test_a_raw_volume_has_no_overlays(rig):
    one = rig.create("a", format=Format.RAW)
    with pytest.raises(Precondition) as caught:
        rig.backend.prepare_overlay(one, SnapshotSpec("s", MIDDLE_UID))
    assert caught.value.reason == "NEEDS_QCOW2"


def test_the_words_of_a_snapshot_are_kept(rig):
    one = rig.create("a")
    spec = SnapshotSpec("s", MIDDLE_UID, {"k": "v"})
    made = rig.backend.create_snapshot(one, spec)
    assert rig.backend.create_snapshot(one, spec) == made and not made.quiesced
    for uid in OTHER_UIDS:
        with pytest.raises(AlreadyExists):
            rig.backend.create_snapshot(one, SnapshotSpec("s", uid))
    for uid in OTHER_UIDS:
        with pytest.raises(NotFound):
            rig.backend.revert_volume(one, uid, token="t")
        rig.backend.delete_snapshot(one, uid)
    assert rig.backend.list_snapshots(one) == [made]


@pytest.mark.parametrize("rebased", [True, False])
@pytest.mark.parametrize("below", ["", "0000.qcow2"])
def test_a_merge_that_a_dead_process_began_is_finished(rig, rebased, below):
    one = rig.create("a")
    rig.write(one, 1)
    if below:
        rig.snapshot(one, "kept")
        rig.write(one, 1)
    first = rig.snapshot(one, "s1")
    rig.write(one, 2, MIB)
    rig.backend.delete_snapshot(one, first)
    store = rig.backend._store
    stored_as, manifest = store.find(one)
    gone, into = ("0001.qcow2", "0002.qcow2") if below else ("0000.qcow2", "0001.qcow2")
    store.save(stored_as, manifest.change(merging=Merge(gone, into)))
    folder = store.folder(stored_as)
    if rebased:
        command = ["qemu-img", "rebase", "-q", "-f", "qcow2", "-b", below, *(["-F", "qcow2"] if below else []), into]
        subprocess.run(command, check=True, cwd=folder)
    rig.reopen()
    kept = {below} - {""}
    assert len(rig.backend.connection(one, host="h").chain) == len(kept) + (0 if rebased else 1)
    assert rig.backend.collapse_layers(one) == (0 if rebased else 1)
    assert layers(rig, one) == {"volume.json", into} | kept
    rig.reads(one, 1)
    rig.reads(one, 2, MIB)


def test_a_clone_whose_source_lost_its_layers_says_so(rig):
    one = rig.create("a")
    rig.write(one, 1)
    clone = rig.clone("c", one, rig.snapshot(one, "s"))
    folder = rig.path / "volumes" / rig.backend.get_volume("a").object
    os.rename(folder, rig.path / "aside")
    found = rig.backend.get_volume("c")
    assert found.state == "failed" and "gone" in found.problem and found.size == 8 * MIB
    with pytest.raises(DataLoss) as caught:
        rig.backend.connection(clone, host="h")
    assert caught.value.reason == "LAYER_MISSING"
    os.rename(rig.path / "aside", folder)
    assert rig.backend.get_volume("c").state == "ready"


def test_raw_without_reflink_copies_clones_and_refuses_snapshots(rig):
    if rig.backend._store.pool.shares:
        rig.backend._store.pool.shares = False
    one = rig.create("a", 8 * MIB, Format.RAW)
    rig.write(one, 5)
    with pytest.raises(Precondition) as caught:
        rig.snapshot(one, "s")
    assert caught.value.reason == "NEEDS_REFLINK" and "qcow2" in caught.value.message
    spec = rig.spec("c", 8 * MIB, Format.RAW, source=Source(SourceKind.VOLUME, "a", one.uid))
    assert 0 < rig.backend.bytes_to_copy(spec) < 2 * MIB
    clone = VolumeId("c", rig.backend.create_volume(spec).uid)
    rig.reads(clone, 5)
    assert rig.backend.get_volume("c").allocated < 2 * MIB
    thick = rig.spec("t", 8 * MIB, Format.RAW, source=spec.source, provisioning=Provisioning.THICK)
    assert 0 < rig.backend.bytes_to_copy(thick) < 2 * MIB
    assert rig.backend.create_volume(thick).allocated >= 8 * MIB
