"""What backends on directories lean on: a directory is claimed once, folders come and go whole, files are replaced whole."""

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.directory_rig import mounted
from volgate.backend import PoolContext, Traits, VolumeId
from volgate.backend.files import copy_durably
from volgate.backend.folders import Folders
from volgate.connect.local import connect
from volgate.errors import AlreadyExists, DataLoss, InvalidRequest, NotFound, OutOfRange, Precondition
from volgate.model import Format, Health, VolumeSpec, VolumeState

MINE, MARKER, DISK = PoolContext("p", "gateway-1"), ".marker", "disk.raw"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(str(tmp_path), MINE, MARKER)


def spec(name: str) -> VolumeSpec:
    return VolumeSpec(name, str(uuid.uuid4()), 5, Format.RAW)


def make(folders: Folders, name: str) -> VolumeId:
    asked = spec(name)
    with folders.make(asked, {"own": 1}) as folder:
        (folder / DISK).write_bytes(b"bytes")
    return VolumeId(asked.name, asked.uid)


def told(folders: Folders):
    return list(folders.each(lambda folder: folders.tell(folder, DISK)))


# -- whose directory it is


def test_a_directory_is_claimed_once_and_stays_its_gateway_s(tmp_path):
    for _ in range(2):
        Folders(str(tmp_path), MINE, MARKER, expect_marker=(tmp_path / MARKER).exists())
    with pytest.raises(Precondition, match="belongs to gateway 'gateway-1'") as caught:
        Folders(str(tmp_path), PoolContext("p", "gateway-2"), MARKER)
    assert caught.value.reason == "POOL_FOREIGN"


@pytest.mark.parametrize("lies_there", ["lost+found", f".{MARKER}.tmp"])
def test_a_new_file_system_and_a_claim_that_died_can_be_claimed(tmp_path, lies_there):
    (tmp_path / lies_there).touch()
    assert Folders(str(tmp_path), MINE, MARKER).check().health is Health.OK


@pytest.mark.parametrize(("lies_there", "expect_marker"), [(["photos"], False), ([], True)])
def test_what_may_be_another_s_is_not_claimed(tmp_path, lies_there, expect_marker):
    for name in lies_there:
        (tmp_path / name).touch()
    with pytest.raises(Precondition, match="is it mounted") as caught:
        Folders(str(tmp_path), MINE, MARKER, expect_marker=expect_marker)
    assert caught.value.reason == "POOL_MARKER_MISSING"
    assert os.listdir(tmp_path) == lies_there


def test_a_path_must_be_absolute_and_there(tmp_path):
    with pytest.raises(InvalidRequest):
        Folders("pool", MINE, MARKER)
    with pytest.raises(NotFound):
        Folders(str(tmp_path / "missing"), MINE, MARKER)


def test_nothing_is_believed_of_a_directory_without_its_marker(folders):
    (folders.root / MARKER).unlink()
    with pytest.raises(Precondition, match=r"^read volume a: "), folders.at("read volume a"):
        pytest.fail("the call began")
    assert folders.check().health is Health.DOWN


def test_a_directory_that_cannot_be_written_to_is_down(folders, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as on a read-only file system, for root too
    assert folders.check().health is Health.DOWN
    assert "cannot be written to" in folders.check().message


# -- folders


def test_a_folder_is_there_whole_or_not_at_all(folders):
    asked = spec("a")
    with pytest.raises(RuntimeError), folders.make(asked) as folder:
        (folder / DISK).touch()
        assert told(folders) == [] and folders.made(asked) is None
        raise RuntimeError
    assert not any((folders.root / ".work").iterdir())
    volume = make(folders, "a")
    assert [(one.name, one.uid, one.size) for one in told(folders)] == [("a", volume.uid, 5)]
    assert folders.load(volume, dict[str, int])[2] == {"own": 1}


def test_what_a_dead_call_left_aside_is_no_hindrance(folders):
    asked = spec("a")
    for _ in range(2):
        left = folders.root / ".work" / folders.path(asked).name
        left.mkdir()
        (left / "left").touch()
        with folders.make(asked) as folder:
            assert list(folder.iterdir()) == []
            (folder / DISK).touch()
        left.mkdir()
        folders.remove(VolumeId(asked.name, asked.uid))
        assert not left.exists() and told(folders) == []


def test_a_name_belongs_to_one_uid_at_a_time(folders):
    first = make(folders, "a")
    make(folders, "a.b")
    assert folders.made(VolumeSpec("a", first.uid, 5, Format.RAW)) == folders.named("a") == folders.path(first)
    with pytest.raises(AlreadyExists):
        folders.made(spec("a"))
    folders.remove(first)
    with pytest.raises(NotFound, match="volume a "):
        folders.named("a")
    second = make(folders, "a")
    folders.remove(first)  # a late repeat
    assert folders.named("a") == folders.path(second)


def test_folders_are_told_in_order_without_those_that_go(folders):
    made = [make(folders, name) for name in ("b", "a", "c")]

    def read(folder: Path) -> str:
        if folder.name.startswith("a."):
            folders.remove(made[2])
        return folders.tell(folder, DISK).name

    assert list(folders.each(read)) == ["a", "b"]


@pytest.mark.parametrize(("file", "problem"), [("owner.json", "owner.json is missing"), (DISK, "disk.raw is missing")])
def test_a_folder_that_lost_a_file_is_told_as_failed(folders, file, problem):
    volume = make(folders, "a")
    (folders.path(volume) / file).unlink()
    (found,) = told(folders)
    assert found.state is VolumeState.FAILED and problem in found.problem and found.name == "a"


def test_a_damaged_tag_is_told_and_nothing_is_read_from_it(folders):
    volume = make(folders, "a")
    (folders.path(volume) / "owner.json").write_text("{}")
    assert [one.state for one in told(folders)] == [VolumeState.FAILED]
    with pytest.raises(DataLoss):
        folders.load(volume, Any)
    with pytest.raises(NotFound):
        folders.load(VolumeId("a", str(uuid.uuid4())), Any)


def test_a_host_can_prove_the_connection(folders):
    volume = make(folders, "a")
    found = folders.connection(volume, DISK)
    assert connect(found).path == str(folders.path(volume) / DISK) and found.size == 5
    (folders.path(volume) / DISK).rename(folders.root / "kept")
    (folders.path(volume) / DISK).touch()
    with pytest.raises(Precondition):
        connect(found)


# -- files and sizes


def test_a_copy_appears_whole_with_holes_as_holes(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data" * 4096)
    target.write_bytes(b"old")
    copy_durably(str(source), str(target))
    assert target.read_bytes() == source.read_bytes() and target.stat().st_blocks * 512 < 1 << 20
    copy_durably(str(source), str(target), 65 << 20)
    assert target.stat().st_size == 65 << 20


def test_where_blocks_can_be_shared_a_copy_takes_no_space(tmp_path):
    with mounted(tmp_path / "image", "xfs", 400 << 20, tmp_path / "xfs") as folder:
        (folder / "source").write_bytes(os.urandom(1 << 20) * 64)
        os.sync()
        before = os.statvfs(folder).f_bavail
        copy_durably(f"{folder}/source", f"{folder}/target")
        assert (folder / "target").stat().st_size == 64 << 20
        assert (before - os.statvfs(folder).f_bavail) * os.statvfs(folder).f_bsize < 4 << 20


def test_a_copy_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with pytest.raises(OutOfRange):
        copy_durably(str(source), str(target), 2)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        copy_durably(str(source), str(target))
    assert target.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["source", "target"]


@pytest.mark.parametrize(("asked", "made"), [(1, 200), (200, 200), (201, 300), (500, 500)])
def test_sizes_round_up_to_the_grain(asked, made):
    assert Traits((Format.RAW,), grain=100, minimum=200, maximum=500).rounded(asked) == made


def test_a_size_beyond_the_maximum_is_refused():
    with pytest.raises(OutOfRange, match="501 bytes are more than 500"):
        Traits((Format.RAW,), grain=100, minimum=200, maximum=500).rounded(501)
