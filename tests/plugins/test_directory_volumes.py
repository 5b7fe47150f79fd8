"""Volumes as they are found on the storage: whole, grown, half-made, damaged."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.plugins.directory_rig import MIB, Rig, filled_up, mounted
from volgate.backend import VolumeId
from volgate.errors import DataLoss, InUse, NotFound, OutOfRange, OutOfSpace, Precondition
from volgate.model import Format, PathState, Provisioning, VolumeState
from volgate_plugins.directory.index import Entry
from volgate_plugins.directory.sources import grow


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool")


def folder_of(rig, volume: VolumeId):
    return rig.path / "volumes" / rig.backend.get_volume(volume.name).object


def test_the_traits_are_those_of_the_settings_and_the_file_system(tmp_path):
    for default, other in ((Format.RAW, Format.QCOW2), (Format.QCOW2, Format.RAW)):
        rig = Rig(tmp_path / default, default_format=str(default), max_depth=7)
        traits = rig.backend.traits
        assert (traits.formats, traits.grain, traits.minimum) == ((default, other), 4096, 4096)
        assert (traits.max_depth, traits.online_snapshots) == (7, "overlay")
        assert ("FICLONE" in "".join(traits.notes)) == (not rig.backend._store.pool.shares)


def test_file_systems_that_share_blocks_are_known(tmp_path):
    with mounted(tmp_path / "fs", "xfs", 400 * MIB, tmp_path / "mnt") as folder:
        rig = Rig(folder)
        assert rig.backend.traits.notes == ()
        one = rig.create("a", MIB, Format.RAW)
        rig.write(one, 1)
        for provisioning, copies in ((Provisioning.THIN, False), (Provisioning.THICK, True)):
            source = rig.backend.get_volume("a")
            clone = rig.clone(f"c-{provisioning}", one, size=MIB, format=Format.RAW, provisioning=provisioning)
            spec = rig.spec("x", MIB, Format.RAW, source=rig.backend.get_volume(clone.name).source, provisioning=provisioning)
            assert (rig.backend.bytes_to_copy(spec) > 0) == copies and rig.backend.get_volume("a") == source
        cut = rig.snapshot(one, "s")
        before = folder_of(rig, one), set(os.listdir(folder_of(rig, one))), rig.backend.get_volume("a").generation
        assert rig.backend.collapse_layers(one) == 0
        rig.backend.revert_volume(one, cut, token="t")
        assert rig.backend.revert_volume(one, cut, token="t").generation == before[2] + 1
        assert set(os.listdir(before[0])) == {"volume.json", "0001.raw", "0002.raw"}
        rig.backend.delete_snapshot(one, cut)
        assert set(os.listdir(before[0])) == {"volume.json", "0002.raw"}


@pytest.mark.parametrize(("asked", "made"), [(1, 4096), (4095, 4096), (4096, 4096), (4097, 8192), (MIB, MIB)])
def test_sizes_are_whole_blocks(rig, asked, made):
    for kind in (Format.RAW, Format.QCOW2):
        one = rig.create(f"v-{kind}", asked, kind)
        assert rig.backend.get_volume(one.name).size == made
    assert rig.backend.capacity().provisioned == 2 * made


def test_growth_goes_as_far_as_the_maximum(tmp_path):
    rig = Rig(tmp_path / "pool", oversubscription=0)
    one, most = rig.create("a"), rig.backend.traits.maximum
    with pytest.raises(OutOfRange) as caught:
        rig.backend.expand_volume(one, most + 1, online=True)
    assert caught.value.field == "size"
    before = rig.backend.get_volume("a")
    assert rig.backend.expand_volume(one, 8 * MIB, online=False) == before, "nothing to do"
    rig.backend.expand_volume(one, most, online=True)
    assert rig.backend.capacity().provisioned == most
    rig.backend.expand_volume(one, 9 * MIB, online=False)
    assert rig.backend.capacity().provisioned == most, "what a guest was promised stays so"
    with pytest.raises(OutOfRange):
        rig.create("b", most + 1)
    assert rig.backend.get_volume(rig.create("b", most).name).size == most


def test_growth_without_room_for_it_is_refused(still):
    rig = Rig(still)
    for kind in (Format.RAW, Format.QCOW2):
        one = rig.create(f"v-{kind}", 4 * MIB, kind, provisioning=Provisioning.THICK)
        before = rig.backend.get_volume(one.name), rig.backend.capacity()
        with pytest.raises(OutOfSpace, match=f"needs {252 * MIB} bytes"):
            rig.backend.expand_volume(one, 256 * MIB, online=False)
        assert (rig.backend.get_volume(one.name), rig.backend.capacity()) == before
        assert rig.backend.expand_volume(one, 256 * MIB, online=True).size == 4 * MIB, "a guest's QEMU will take the space"
        rig.backend.delete_volume(one)


def test_growth_that_comes_to_the_end_of_the_space_is_taken_back(still):
    rig = Rig(still)
    one = rig.create("v", 4 * MIB, Format.RAW, provisioning=Provisioning.THICK)
    file, free = folder_of(rig, one) / "0000.raw", rig.backend.capacity().free
    with pytest.raises(OSError, match="No space"):
        grow(str(file), Format.RAW, 256 * MIB, Provisioning.THICK)
    assert file.stat().st_size == 4 * MIB and abs(rig.backend.capacity().free - free) < MIB


def test_growth_that_fails_is_no_longer_promised(rig):
    one = rig.create("v", provisioning=Provisioning.THICK)
    before = rig.backend.capacity().provisioned
    with subprocess.Popen(["qemu-io", "-f", "qcow2", rig.backend.image(one).path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdin.write(b"write 0 4k\n")
        other.stdin.flush()
        other.stdout.readline()
        with pytest.raises(InUse):
            rig.backend.expand_volume(one, 16 * MIB, online=False)
        other.communicate(b"quit\n")
    assert rig.backend.capacity().provisioned == before
    assert rig.backend.expand_volume(one, 16 * MIB, online=False).size == 16 * MIB == rig.backend.capacity().provisioned


def test_a_change_without_space_leaves_nothing_half_made(still):
    rig = Rig(still)
    one = rig.create("a", MIB)
    rig.write(one, 1)
    before = rig.files()
    with filled_up(still):
        for call in (lambda: rig.snapshot(one, "s"), lambda: rig.clone("c", one, size=MIB), lambda: rig.create("b", MIB)):
            with pytest.raises(OutOfSpace):
                call()
    assert rig.files() == before and rig.backend.capacity().provisioned == MIB
    rig.reads(one, 1)


def test_a_deletion_takes_along_what_a_dead_creation_left(rig):
    one = rig.create("a")
    stored_as = rig.backend.get_volume("a").object
    rig.backend.delete_volume(one)
    half = rig.path / ".work" / stored_as
    half.mkdir()
    (half / "0000.qcow2").write_bytes(b"x")
    rig.backend.delete_volume(VolumeId("a", "other"))
    assert half.exists()
    rig.backend.delete_volume(one)
    assert not half.exists()


def test_the_same_labels_again_change_nothing(rig):
    one = rig.create("a", labels={"k": "v"})
    before = rig.backend.get_volume("a")
    assert rig.backend.relabel_volume(one, {"k": "v"}) == before
    assert rig.backend.relabel_volume(one, {"k": "w"}).generation == before.generation + 1


@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2])
def test_a_layer_that_is_gone_is_told_by_every_call(rig, kind):
    one = rig.create("a.b", format=kind, labels={"k": "v"})
    (folder_of(rig, one) / f"0000.{kind}").unlink()
    found = rig.backend.get_volume("a.b")
    assert (found.state, found.size, found.labels, found.uid) == (VolumeState.FAILED, 8 * MIB, {"k": "v"}, one.uid)
    assert f"0000.{kind} is missing" in found.problem
    for call in (
        lambda: rig.backend.connection(one, host="h"),
        lambda: rig.backend.image(one),
        lambda: rig.backend.expand_volume(one, 9 * MIB, online=False),
        lambda: rig.snapshot(one, "s") if kind is Format.QCOW2 else rig.backend.image(one),
    ):
        with pytest.raises(DataLoss) as caught:
            call()
        assert caught.value.reason == "LAYER_MISSING"
    (path,) = rig.backend.paths(one)
    assert path.state is PathState.FAILED and path.last_error and "layers" not in path.facts


def test_a_manifest_that_cannot_be_read_costs_no_other_volume(rig):
    one, two = rig.create("a.b", labels={"k": "v"}), rig.create("c")
    tag = folder_of(rig, one) / "volume.json"
    for spoil in (lambda: tag.write_bytes(b"{}"), tag.unlink):
        spoil()
        rig.reopen()
        found = {volume.name: volume for volume in rig.backend.list_volumes()}
        assert found["c"].state is VolumeState.READY and found["c"].uid == two.uid
        bad = found["a.b"]
        assert (bad.state, bad.uid, bad.size, bad.requested_size, bad.object) == (VolumeState.FAILED, "", 0, 0, tag.parent.name)
        assert (bad.format, bad.provisioning) == (Format.QCOW2, Provisioning.THIN)
        assert bad.problem and rig.backend.capacity().provisioned == 8 * MIB
        with pytest.raises(DataLoss):
            rig.backend.expand_volume(VolumeId("a.b", ""), 9 * MIB, online=False)


def test_a_name_whose_folder_went_is_not_found(rig):
    rig.create("a")
    store = rig.backend._store
    store.index.put("b.1", Entry("b", "uid", 4096))
    with pytest.raises(NotFound):
        rig.backend.get_volume("b")
    assert rig.backend.capacity().provisioned == 8 * MIB
    store.index.put("b.1", Entry("b", "uid", 4096))
    assert [volume.name for volume in rig.backend.list_volumes()] == ["a"]


def test_a_volume_that_another_process_made_anew_is_found(rig):
    one = rig.create("a")
    other = Rig(rig.path)
    other.backend.delete_volume(one)
    two = other.create("a", 4 * MIB)
    assert (rig.backend.get_volume("a").uid, rig.backend.capacity().provisioned) == (two.uid, 4 * MIB)
    with pytest.raises(NotFound):
        rig.backend.connection(one, host="h")


def test_the_size_of_a_connection_is_that_of_its_top_layer(rig):
    one = rig.create("a")
    cut = rig.snapshot(one, "s")
    rig.backend.expand_volume(one, 16 * MIB, online=False)
    assert (rig.backend.connection(one, host="h").size, rig.backend.image(one, cut).size) == (16 * MIB, 8 * MIB)


@pytest.mark.parametrize("below", ["0000.qcow", "zzz.qcow2", ""])
def test_a_layer_that_lies_on_another_than_its_record_says_is_not_opened(rig, below):
    one = rig.create("a")
    rig.snapshot(one, "s")
    top = folder_of(rig, one) / "0001.qcow2"
    words = ["-b", below, "-F", "qcow2"] if below else ["-b", ""]
    subprocess.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", *words, top], check=True)
    with pytest.raises(DataLoss) as caught:
        rig.backend.connection(one, host="h")
    assert caught.value.reason == "CHAIN_MISMATCH"


def elsewhere(path) -> None:
    path.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=elsewhere.raw", path, "8M"], check=True, cwd=path.parent)


def encrypted(path) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), (2).to_bytes(4, "big"), 32)  # the header's method: LUKS


@pytest.mark.parametrize("spoil", [elsewhere, encrypted])
def test_an_image_whose_bytes_lie_elsewhere_or_are_encrypted_is_not_opened(rig, spoil):
    one = rig.create("a")
    spoil(folder_of(rig, one) / "0000.qcow2")
    with pytest.raises(DataLoss) as caught:
        rig.backend.connection(one, host="h")
    assert caught.value.reason == "CHAIN_MISMATCH"
    assert rig.backend.paths(one)[0].state is PathState.FAILED


def test_an_image_without_a_head_is_damaged(rig):
    one = rig.create("a")
    (folder_of(rig, one) / "0000.qcow2").write_bytes(bytes(65536))
    assert rig.backend.get_volume("a").state is VolumeState.FAILED
    with pytest.raises(DataLoss) as caught:
        rig.backend.connection(one, host="h")
    assert caught.value.reason == "IMAGE_DAMAGED"


def test_files_that_nothing_names_go_and_others_stay(rig):
    one = rig.create("a")
    cut = rig.snapshot(one, "s")
    before = rig.files()
    for name in ("0007.qcow2", "volume.jso", "volume.json.part", "zzz"):
        (folder_of(rig, one) / name).write_bytes(b"x")
    rig.backend.delete_snapshot(one, "no such snapshot")
    assert rig.files() == before
    (folder_of(rig, one) / "0002.qcow2").write_bytes(b"half")
    rig.snapshot(one, "t")
    assert rig.files() == before | {str((folder_of(rig, one) / "0002.qcow2").relative_to(rig.path))}
    assert {name: rig.backend.image(one, uid).path[-10:] for name, uid in (("s", cut),)} == {"s": "0000.qcow2"}


def test_what_is_allocated_is_that_of_all_layers(rig):
    one = rig.create("a", thick := 8 * MIB, provisioning=Provisioning.THICK)
    alone = rig.backend.get_volume("a").allocated
    assert alone >= thick and rig.backend.get_volume("a").provisioning is Provisioning.THICK
    assert (folder_of(rig, one) / "0000.qcow2").stat().st_mode & 0o777 == 0o600
    rig.snapshot(one, "s")
    rig.write(one, 1)
    assert rig.backend.get_volume("a").allocated >= alone + MIB
    rig.snapshot(one, "t")
    facts = rig.backend.paths(one)[0].facts
    assert (facts["layers"], facts["format"]) == ("3", "qcow2")


def test_a_volume_that_is_filled_has_no_other_use(rig):
    one = rig.create("a", incomplete=True)
    assert rig.backend.get_volume("a").state is VolumeState.CREATING
    for call in (lambda: rig.backend.connection(one, host="h"), lambda: rig.snapshot(one, "s"), lambda: rig.clone("c", one)):
        with pytest.raises(Precondition) as caught:
            call()
        assert caught.value.reason == "NOT_READY"
