from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugins.directory_rig import MIB, Rig, mounted
from volgate.backend import PoolContext, SnapshotSpec, VolumeId, capabilities, files
from volgate.errors import AlreadyExists, DataLoss, InUse, InvalidRequest, NotFound, OutOfRange, OutOfSpace, Precondition, Unsupported
from volgate.model import Format, Health, PathState, Provisioning, Source, SourceKind, VolumeState
from volgate_plugins.directory import Directory, DirectorySettings


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool")


def test_every_facet_is_there(rig):
    assert len(capabilities(rig.backend)) == 10
    assert rig.backend.traits.formats == (Format.QCOW2, Format.RAW)


def test_create_read_list_delete_leaves_only_the_pool(rig):
    empty = rig.files()
    ids = [rig.create(n, 5000, f, labels={"a": "b"}) for n, f in (("z", Format.RAW), ("a.b", Format.QCOW2), ("a", Format.QCOW2))]
    assert [v.name for v in rig.backend.list_volumes()] == ["a", "a.b", "z"]
    found = rig.backend.get_volume("z")
    assert (found.size, found.requested_size, found.uid, found.labels) == (8192, 5000, ids[0].uid, {"a": "b"})
    folder = rig.path / "volumes" / found.object
    assert (folder.stat().st_mode & 0o777, (folder / "0000.raw").stat().st_mode & 0o777) == (0o711, 0o600)
    assert json.loads((folder / "volume.json").read_bytes())["uid"] == found.uid
    rig.checked()
    for one in ids:
        rig.backend.delete_volume(one)
        rig.backend.delete_volume(one)
    assert rig.files() == empty
    with pytest.raises(NotFound):
        rig.backend.get_volume("z")


def test_repeats_and_other_uids(rig):
    spec = rig.spec("a")
    first = rig.backend.create_volume(spec)
    assert rig.backend.create_volume(spec) == first
    with pytest.raises(AlreadyExists):
        rig.create("a")
    rig.backend.delete_volume(VolumeId("a", str(uuid.uuid4())))
    assert rig.backend.get_volume("a").uid == first.uid
    with pytest.raises(NotFound):
        rig.backend.connection(VolumeId("a", str(uuid.uuid4())), host="h")


def test_sizes_formats_and_provisioning(rig):
    for bad in (0, -1, (1 << 50) + 1):
        with pytest.raises(OutOfRange):
            rig.create("a", bad)
    with pytest.raises(Unsupported):
        rig.create("a", format=Format.VMDK)
    for kind in (Format.RAW, Format.QCOW2):
        thick = rig.create(f"thick-{kind}", 4 * MIB, kind, provisioning=Provisioning.THICK)
        assert rig.backend.get_volume(thick.name).allocated >= 4 * MIB
    rig.checked()
    assert not list((rig.path / ".work").iterdir())


def test_foreign_and_missing_markers(rig, tmp_path):
    with pytest.raises(Precondition) as caught:
        Directory.open(rig.settings, PoolContext("p", "gateway-2"))
    assert caught.value.reason == "POOL_FOREIGN"
    with pytest.raises(Precondition) as caught:
        Directory.open(DirectorySettings(path=str(tmp_path / "gone"), expect_marker=True), PoolContext("p", "gateway-1"))
    assert caught.value.reason == "POOL_MARKER_MISSING"
    with pytest.raises(NotFound):
        Directory.open(DirectorySettings(path=str(tmp_path / "gone"), create=False), PoolContext("p", "gateway-1"))
    with pytest.raises(InvalidRequest):
        Directory.open(DirectorySettings(path="relative"), PoolContext("p", "gateway-1"))
    (rig.path / ".volgate-pool.json").unlink()
    assert rig.backend.check().health is Health.DOWN
    with pytest.raises(Precondition) as caught:
        rig.reopen()
    assert caught.value.reason == "POOL_MARKER_MISSING"


def test_an_unmounted_directory_is_no_empty_pool(tmp_path):
    with mounted(tmp_path / "fs", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        rig = Rig(folder)
        one = rig.create("a")
    calls = (
        lambda: rig.backend.get_volume("a"),
        lambda: rig.backend.get_volume("b"),
        lambda: rig.backend.delete_volume(one),
        lambda: rig.backend.connection(one, host="h"),
        lambda: list(rig.backend.list_volumes()),
        lambda: rig.create("c"),
        rig.backend.capacity,
    )
    for call in calls:
        with pytest.raises(Precondition) as caught:
            call()
        assert caught.value.reason == "POOL_MARKER_MISSING"
    assert rig.backend.check().health is Health.DOWN
    assert not list((tmp_path / "mnt").iterdir())


def test_connection_proves_what_it_names(rig):
    one = rig.create("a")
    rig.snapshot(one, "s")
    found = rig.backend.connection(one, host="h")
    status = os.stat(found.path)
    assert (found.identity.device, found.identity.inode, found.identity.uid) == (status.st_dev, status.st_ino, one.uid)
    assert found.root == str(rig.path) and json.loads(Path(found.tag).read_bytes())["uid"] == one.uid
    assert found.path.endswith("0001.qcow2") and [p.rpartition("/")[2] for p, _ in found.chain] == ["0000.qcow2"]
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", found.path], check=True)
    with pytest.raises(DataLoss) as caught:
        rig.backend.connection(one, host="h")
    assert caught.value.reason == "CHAIN_MISMATCH"
    assert rig.backend.paths(one)[0].state is PathState.FAILED
    os.unlink(found.path)
    os.symlink("/etc/passwd", found.path)
    with pytest.raises(Exception, match="symbolic"):
        rig.backend.connection(one, host="h")


def test_damage_is_reported_not_hidden(rig):
    one, two = rig.create("a"), rig.create("b")
    tag = rig.path / "volumes" / rig.backend.get_volume("a").object / "volume.json"
    tag.write_bytes(tag.read_bytes().replace(b'"generation":1', b'"generation":7'))
    (rig.path / "volumes" / rig.backend.get_volume("b").object / "0000.qcow2").unlink()
    rig.reopen()
    states = {v.name: (v.state, v.problem) for v in rig.backend.list_volumes()}
    assert states["a"][0] is states["b"][0] is VolumeState.FAILED
    assert "checksum" in states["a"][1] and "missing" in states["b"][1]
    for damaged in (one, two):
        with pytest.raises(DataLoss):
            rig.backend.connection(damaged, host="h")
    with pytest.raises(AlreadyExists):
        rig.create("a")


def test_expand(rig):
    for kind in (Format.RAW, Format.QCOW2):
        one = rig.create(f"v-{kind}", 1 * MIB, kind)
        rig.write(one, 7)
        assert rig.backend.expand_volume(one, 5 * MIB, online=False).size == 5 * MIB
        assert rig.backend.expand_volume(one, 2 * MIB, online=False).size == 5 * MIB
        assert rig.backend.expand_volume(one, 9 * MIB, online=True).size == 5 * MIB
        rig.reads(one, 7)
        rig.reads(one, 0, 4 * MIB)
    assert rig.backend.capacity().provisioned == 18 * MIB
    rig.checked()


def test_oversubscription_holds_under_races_and_after_reopening(tmp_path):
    total = os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    rig = Rig(tmp_path / "pool", oversubscription=10 * MIB / total)

    def one(number: int) -> bool:
        try:
            rig.create(f"v{number}", MIB)
        except OutOfSpace as error:
            assert error.reason == "OVERSUBSCRIBED"
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(one, range(30)))
    limit = rig.backend.capacity().limit
    assert made == limit // MIB and rig.backend.capacity().provisioned == made * MIB
    rig.reopen()
    assert rig.backend.capacity().provisioned == made * MIB
    name = next(iter(rig.backend.list_volumes())).name
    with pytest.raises(OutOfSpace):
        rig.backend.expand_volume(VolumeId(name, rig.backend.get_volume(name).uid), 5 * MIB, online=True)


def test_racing_creates_of_one_name_have_one_winner(rig):
    for round_ in range(5):
        specs = [rig.spec(f"v{round_}") for _ in range(4)] * 3
        barrier = threading.Barrier(len(specs))

        def one(spec, barrier=barrier):
            barrier.wait()
            try:
                return rig.backend.create_volume(spec).uid
            except AlreadyExists:
                return ""

        with ThreadPoolExecutor(len(specs)) as pool:
            found = list(pool.map(one, specs))
        assert len(set(found) - {""}) == 1 and found.count("") == 9
    assert len(list(rig.backend.list_volumes())) == 5 and not list((rig.path / ".work").iterdir())


CRASH = """
import os, sys, json
from tests.plugins.directory_rig import Rig, MIB
from volgate.backend import SnapshotSpec, VolumeId
from volgate.model import Format, Source, SourceKind
from pathlib import Path
left = int(sys.argv[2])
def counted(event, _):
    global left
    if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "os.truncate", "os.link"):
        if event == "open" and not (_[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)): return
        left -= 1
        if left < 0: os._exit(9)
rig = Rig(Path(sys.argv[1]))
what = json.loads(sys.argv[3])
a = VolumeId("a", what["a"])
sys.addaudithook(counted)
exec(what["code"])
"""
ACTS = {
    "create": "rig.backend.create_volume(rig.spec('n', uid=what['n']))",
    "raw": "rig.backend.create_volume(rig.spec('n', uid=what['n'], format=Format.RAW))",
    "clone": "rig.backend.create_volume(rig.spec('n', uid=what['n'], source=Source(SourceKind.VOLUME, 'a', a.uid)))",
    "snapshot": "rig.backend.create_snapshot(a, SnapshotSpec('s', what['n']))",
    "revert": "rig.backend.revert_volume(a, what['old'], token='t')",
    "delete-snapshot": "rig.backend.delete_snapshot(a, what['old'])",
    "collapse": "rig.backend.delete_snapshot(a, what['old']); rig.backend.collapse_layers(a)",
    "overlay": "rig.backend.prepare_overlay(a, SnapshotSpec('s', what['n'])); rig.backend.finish_overlay(a, SnapshotSpec('s', what['n']))",
    "abandon": "rig.backend.prepare_overlay(a, SnapshotSpec('s', what['n'])); rig.backend.abandon_overlay(a, what['n'])",
    "adopt": "rig.backend.adopt_volume('stray.img', rig.spec('n', uid=what['n'], format=Format.RAW))",
    "delete": "rig.backend.delete_snapshot(a, what['old']); rig.backend.delete_volume(a)",
}


@pytest.mark.parametrize("act", ACTS)
def test_a_crash_at_every_change_and_a_replay_leave_what_one_call_leaves(tmp_path, act):
    def prepared(name: str) -> tuple[Rig, dict]:
        rig = Rig(tmp_path / name)
        a = rig.create("a", uid="aaaaaaaa-0000-4000-8000-000000000000")
        rig.write(a, 1)
        old = rig.snapshot(a, "old")
        rig.write(a, 2, MIB)
        (rig.path / "stray.img").write_bytes(b"\5" * MIB)
        return rig, {"a": a.uid, "old": old, "n": "bbbbbbbb-0000-4000-8000-000000000000", "code": ACTS[act]}

    def run(rig: Rig, what: dict, steps: int) -> int:
        command = [sys.executable, "-c", CRASH, str(rig.path), str(steps), json.dumps(what)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        return done.returncode

    clean, what = prepared("clean")
    assert run(clean, what, 10**6) == 0
    crashes = 0
    for steps in range(100):
        rig, what = prepared(f"p{steps}")
        died = run(rig, what, steps) == 9
        crashes += died
        assert run(rig, what, 10**6) == 0
        assert rig.files() == clean.files(), f"after {steps} steps"
        rig.reopen()
        assert all(v.state is VolumeState.READY for v in rig.backend.list_volumes())
        for volume in rig.backend.list_volumes():
            rig.backend.connection(VolumeId(volume.name, volume.uid), host="h")
        if act not in ("revert", "delete"):
            rig.reads(VolumeId("a", what["a"]), 1)
            rig.reads(VolumeId("a", what["a"]), 2, MIB)
        if act == "adopt":
            rig.reads(VolumeId("n", what["n"]), 5)
        rig.checked()
        shutil.rmtree(rig.path)
        if not died:
            break
    assert not died and crashes >= 3


def test_no_space_is_told_and_leaves_nothing(tmp_path):
    with mounted(tmp_path / "fs", "ext4", 24 * MIB, tmp_path / "mnt") as folder:
        rig = Rig(folder)
        before = rig.files()
        for kind in (Format.RAW, Format.QCOW2):
            with pytest.raises(OutOfSpace):
                rig.create("a", 64 * MIB, kind, provisioning=Provisioning.THICK)
        one = rig.create("a", 64 * MIB)
        source = folder / "filler"
        with source.open("wb") as file:
            for chunk in (65536, 4096, 4096):  # the last blocks go only to small writes, and some come back at a sync
                with pytest.raises(OSError):
                    while True:
                        os.write(file.fileno(), b"x" * chunk)
                os.fsync(file.fileno())
        with pytest.raises(OutOfSpace):
            rig.create("b")
        with pytest.raises(OutOfSpace):
            rig.backend.create_snapshot(one, SnapshotSpec("s", str(uuid.uuid4())))
        assert rig.backend.check().health is not Health.OK
        source.unlink()
        rig.snapshot(one, "s")
        rig.backend.delete_snapshot(one, rig.backend.list_snapshots(one)[0].uid)
        rig.backend.delete_volume(one)
        assert rig.files() == before


def test_reflink_on_real_xfs(tmp_path):
    with mounted(tmp_path / "fs", "xfs", 400 * MIB, tmp_path / "mnt") as folder:
        rig = Rig(folder, default_format="raw")
        one = rig.create("a", 8 * MIB, Format.RAW)
        rig.write(one, 1)
        first = rig.snapshot(one, "s1")
        rig.write(one, 2)
        second = rig.snapshot(one, "s2")
        rig.write(one, 3)
        spec = rig.spec("c", 16 * MIB, Format.RAW, source=Source(SourceKind.SNAPSHOT, "a", one.uid, "s1", first))
        assert rig.backend.bytes_to_copy(spec) == 0
        clone = VolumeId("c", rig.backend.create_volume(spec).uid)
        rig.reads(clone, 1)
        rig.reads(clone, 0, 9 * MIB)
        rig.reads(one, 3)
        rig.backend.revert_volume(one, first, token="t")
        rig.write(one, 9)
        rig.backend.revert_volume(one, first, token="t")
        rig.reads(one, 9)
        rig.reads(one, 1, snapshot=first)
        rig.reads(one, 2, snapshot=second)
        rig.backend.delete_snapshot(one, first)
        rig.backend.delete_snapshot(one, second)
        rig.reads(clone, 1)
        assert rig.backend.children(one) == []
        rig.backend.delete_volume(one)
        rig.reads(clone, 1)
        with pytest.raises(Precondition):
            rig.backend.prepare_overlay(clone, SnapshotSpec("o", str(uuid.uuid4())))


def test_adoption(rig):
    for name, kind in (("disk.img", "raw"), ("disk.qcow2", "qcow2")):
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, rig.path / name, "4M"], check=True)
        subprocess.run(["qemu-io", "-f", kind, "-c", "write -P 3 0 1M", rig.path / name], check=True, capture_output=True)
    (rig.path / "link").symlink_to("/etc/passwd")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", rig.path / "bad", "4M"], check=True)
    assert [(f.locator, f.format) for f in rig.backend.list_foreign()] == [("bad", "qcow2"), ("disk.img", "raw"), ("disk.qcow2", "qcow2")]
    for name, kind in (("disk.img", Format.RAW), ("disk.qcow2", Format.QCOW2)):
        spec = rig.spec(f"v-{kind}", 0, kind)
        found = rig.backend.adopt_volume(name, spec)
        assert rig.backend.adopt_volume(name, spec) == found and found.size == 4 * MIB
        rig.reads(VolumeId(found.name, found.uid), 3)
    with pytest.raises(Precondition) as caught:
        rig.backend.adopt_volume("bad", rig.spec("x"))
    assert caught.value.reason == "HOSTILE_IMAGE"
    for locator, error in (("nothing", NotFound), ("../x", InvalidRequest), ("link", Precondition), ("bad", AlreadyExists)):
        with pytest.raises(error):
            rig.backend.adopt_volume(locator, rig.spec("v-raw" if locator == "bad" else "x", format=Format.RAW))
    assert [f.locator for f in rig.backend.list_foreign()] == ["bad"]


def test_filling_an_incomplete_volume(rig, tmp_path):
    source = tmp_path / "in.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", tmp_path / "r", "4M"], check=True)
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 6 1M 1M", tmp_path / "r"], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", tmp_path / "r", source], check=True)
    for kind in (Format.RAW, Format.QCOW2):
        one = rig.create(f"v-{kind}", 8 * MIB, kind, incomplete=True)
        assert rig.backend.get_volume(one.name).state is VolumeState.CREATING
        with pytest.raises(Precondition):
            rig.backend.connection(one, host="h")
        seen: list[float] = []
        for _ in range(2):
            rig.backend.fill_from_file(one, str(source), Format.VMDK, seen.append)
        assert seen[-1] == 1.0
        assert rig.backend.complete(one).state is rig.backend.complete(one).state is VolumeState.READY
        rig.reads(one, 6, MIB)
        rig.reads(one, 0, 2 * MIB, 6 * MIB)
        assert rig.backend.get_volume(one.name).size == 8 * MIB
        small = rig.create(f"small-{kind}", MIB, kind, incomplete=True)
        with pytest.raises(OutOfRange):
            rig.backend.fill_from_file(small, str(source), Format.VMDK, seen.append)
    rig.checked()
    assert not [f for f in rig.files() if "part" in f or "image-" in f]


def test_labels_survive_and_trash_is_kept_as_long_as_asked(tmp_path):
    rig = Rig(tmp_path / "pool", trash_seconds=3600)
    one = rig.create("a")
    assert rig.backend.relabel_volume(one, {"x": "y"}).labels == {"x": "y"}
    rig.reopen()
    assert rig.backend.get_volume("a").labels == {"x": "y"}
    rig.backend.delete_volume(one)
    assert len(list((rig.path / ".trash").iterdir())) == 1
    Rig(rig.path, trash_seconds=0)
    assert not list((rig.path / ".trash").iterdir())


def test_durable_files(tmp_path):
    path = tmp_path / "x"
    files.write_durably(str(path), b"1")
    files.write_durably(str(path), b"2")
    assert path.read_bytes() == b"2" and os.listdir(tmp_path) == ["x"]
    with path.open("r+b") as source, (tmp_path / "y").open("w+b") as target:
        source.truncate(64 * MIB)
        source.seek(32 * MIB)
        source.write(b"data" * 4096)
        source.flush()
        files.copy_sparse(source.fileno(), target.fileno())
        assert os.fstat(target.fileno()).st_blocks * 512 < MIB
    assert path.read_bytes() == (tmp_path / "y").read_bytes()


def test_holders_are_named(rig):
    one = rig.create("a")
    first = rig.snapshot(one, "s")
    child = rig.clone("c", one, first)
    with pytest.raises(InUse) as caught:
        rig.backend.delete_volume(one)
    assert {(h.kind, h.name) for h in caught.value.holders} == {("snapshot", "s"), ("volume", "c")}
    with pytest.raises(InUse) as caught:
        rig.backend.delete_snapshot(one, first)
    assert [h.name for h in caught.value.holders] == ["c"]
    with pytest.raises(OutOfRange):
        rig.clone("d", one, first, size=MIB)
    with pytest.raises(NotFound):
        rig.clone("d", one, str(uuid.uuid4()))
    with pytest.raises(AlreadyExists):
        rig.snapshot(one, "s")
    rig.backend.delete_volume(child)
    rig.backend.delete_snapshot(one, first)
    rig.backend.delete_snapshot(one, first)
    rig.backend.delete_volume(one)


def test_depth_is_bounded_and_clones_of_an_untouched_volume_add_no_layers(tmp_path):
    rig = Rig(tmp_path / "pool", max_depth=3)
    one = rig.create("a")
    for number in range(3):
        rig.snapshot(one, f"s{number}")
    with pytest.raises(Precondition) as caught:
        rig.snapshot(one, "s3")
    assert caught.value.reason == "CHAIN_TOO_DEEP"
    golden = rig.create("golden")
    rig.write(golden, 1)
    for number in range(5):
        rig.reads(rig.clone(f"c{number}", golden), 1)
    assert rig.backend.get_volume("golden").depth == 1
