"""Files that others left in the pool, and images that fill a volume: what is taken, what is refused, and what stays of a failure."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.plugins.directory_rig import MIB, Rig, filled_up, io, mounted
from volgate.backend import VolumeId
from volgate.errors import InvalidRequest, NotFound, OutOfSpace, Precondition
from volgate.model import Format, Provisioning


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool")


def stray(rig, name: str, size: int = MIB) -> str:
    with (rig.path / name).open("wb") as file:
        file.truncate(size)
    return name


def adopt(rig, locator: str, kind: Format = Format.RAW, name: str = "a"):
    return rig.backend.adopt_volume(locator, rig.spec(name, 0, kind))


def refused(rig, locator: str) -> None:
    before = rig.files()
    with pytest.raises(Precondition) as caught:
        adopt(rig, locator)
    assert caught.value.reason == "NOT_ADOPTABLE"
    assert rig.files() == before


def test_what_is_no_file_of_its_own_is_not_adopted(rig, tmp_path):
    (tmp_path / "elsewhere").write_bytes(bytes(MIB))
    (rig.path / "link").symlink_to(tmp_path / "elsewhere")
    os.link(rig.path / stray(rig, "one"), rig.path / "other")
    os.mkfifo(rig.path / "pipe")
    (rig.path / "folder").mkdir()
    for locator in ("link", "one", "other", "pipe", "folder"):
        refused(rig, locator)
    assert [found.locator for found in rig.backend.list_foreign()] == ["one", "other"]


def test_only_names_at_the_top_of_the_pool_are_locators(rig):
    (rig.path / "folder").mkdir()
    stray(rig, "folder/file")
    stray(rig, ".hidden")
    for locator in ("", "folder/file", ".hidden", "..", "/etc/passwd"):
        with pytest.raises(InvalidRequest) as caught:
            adopt(rig, locator)
        assert caught.value.field == "locator"
    for locator in ("trash:", "trash:folder/file", "trash:.hidden"):
        with pytest.raises(InvalidRequest) as caught:
            adopt(rig, locator)
        assert caught.value.field == "locator"
    with pytest.raises(NotFound):
        adopt(rig, "trash:nothing.1")
    assert not list(rig.backend.list_foreign())


@pytest.mark.parametrize("size", [1, 511, 513, MIB + 256])
def test_a_file_that_is_no_whole_number_of_sectors_is_not_adopted(rig, size):
    refused(rig, stray(rig, "file", size))


@pytest.mark.parametrize("size", [512, 1536, MIB])
def test_a_file_of_whole_sectors_is_adopted_as_it_is(rig, size):
    found = adopt(rig, stray(rig, "file", size))
    folder = rig.path / "volumes" / found.object
    assert found.size == size and not (rig.path / "file").exists()
    assert (folder.stat().st_mode & 0o777, (folder / "0000.raw").stat().st_mode & 0o777) == (0o711, 0o600)
    assert rig.backend.capacity().provisioned == -(-size // 4096) * 4096


def test_a_format_that_cannot_be_served_is_not_adopted(rig):
    before = rig.files() | {stray(rig, "file")}
    with pytest.raises(Precondition) as caught:
        adopt(rig, "file", Format.VMDK)
    assert caught.value.reason == "NOT_ADOPTABLE" and rig.files() == before


def test_an_image_has_the_size_that_a_guest_sees(rig):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", rig.path / "image", "7M"], check=True)
    assert adopt(rig, "image", Format.QCOW2).size == 7 * MIB == rig.backend.capacity().provisioned


def test_a_foreign_file_looks_like_an_image_only_if_it_is_one(rig):
    for name, head in (("above", b"\xff" * 4), ("below", b"\0" * 4), ("image", b"QFI\xfb"), ("short", b"QFI")):
        (rig.path / name).write_bytes(head)
    found = {one.locator: (one.format, one.size) for one in rig.backend.list_foreign()}
    assert found == {"above": (Format.RAW, 4), "below": (Format.RAW, 4), "image": (Format.QCOW2, 4), "short": (Format.RAW, 3)}


def test_an_adoption_without_space_leaves_the_file_where_it_is(tmp_path):
    with mounted(tmp_path / "fs", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        rig = Rig(folder)
        stray(rig, "file")
        before = rig.files()
        with filled_up(folder), pytest.raises(OutOfSpace):
            adopt(rig, "file")
        assert rig.files() == before
        assert adopt(rig, "file").size == MIB


def image(path, kind: str, size: int) -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(size)], check=True)
    io(kind, f"write -P 5 0 {MIB}", str(path))
    return str(path)


@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2])
def test_a_filled_volume_is_as_thick_as_was_asked(rig, tmp_path, kind):
    source = image(tmp_path / "image", "qcow2", 8 * MIB)
    for provisioning in (Provisioning.THIN, Provisioning.THICK):
        one = rig.create(f"v-{provisioning}", 8 * MIB, kind, incomplete=True, provisioning=provisioning)
        rig.backend.fill_from_file(one, source, Format.QCOW2, lambda _done: None)
        done = rig.backend.complete(one)
        assert (done.allocated >= 8 * MIB) == (provisioning is Provisioning.THICK)
        assert done.size == 8 * MIB
        rig.reads(one, 5)
        rig.reads(one, 0, MIB, 7 * MIB)


def test_a_filling_that_fails_leaves_the_volume_empty_and_to_be_filled(rig, tmp_path):
    one = rig.create("a", incomplete=True)
    before = rig.files()
    with pytest.raises(NotFound):
        rig.backend.fill_from_file(one, str(tmp_path / "nothing"), Format.RAW, lambda _done: None)

    def stopped(_done: float) -> None:
        raise KeyboardInterrupt

    source = image(tmp_path / "image", "raw", 8 * MIB)
    with pytest.raises(KeyboardInterrupt):
        rig.backend.fill_from_file(one, source, Format.RAW, stopped)
    assert rig.files() == before
    rig.backend.fill_from_file(one, source, Format.RAW, lambda _done: None)
    rig.backend.complete(one)
    rig.reads(one, 5)


def test_only_an_import_writes_to_an_image(rig):
    one = rig.create("a", incomplete=True)
    assert rig.backend.image(one, writable=True).path == rig.backend.image(one).path
    rig.backend.complete(one)
    assert rig.backend.image(one).size == 8 * MIB
    with pytest.raises(Precondition) as caught:
        rig.backend.image(one, writable=True)
    assert caught.value.reason == "NOT_INCOMPLETE"
    with pytest.raises(NotFound):
        rig.backend.image(one, "no such snapshot")
    with pytest.raises(NotFound):
        rig.backend.image(VolumeId("b", ""))
