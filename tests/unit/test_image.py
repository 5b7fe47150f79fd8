from __future__ import annotations

import hashlib
import os
import struct
import subprocess

import pytest

from volgate.backend import qcow2
from volgate.backend.files import create_file
from volgate.backend.image import convert, inspect
from volgate.errors import Cancelled, OutOfRange, Precondition
from volgate.model import Format

MIB = 1 << 20


def tool(*arguments) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
        file.seek(3 * MIB)
        file.write(os.urandom(2 * MIB))
    return path


def same(tmp_path, path, kind, disk) -> bool:
    back = tmp_path / "back"
    tool("convert", "-f", kind, "-O", "raw", path, back)
    return hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(disk.read_bytes()).digest()


def test_native_images_satisfy_the_tool(tmp_path):
    base, top = tmp_path / "base", tmp_path / "top"
    for size in (512, 4096, 65536, 512 << 20, (512 << 20) + 512, 1 << 40, (1 << 42) + 512, 1 << 46, 1 << 50):
        create_file(str(base), qcow2.empty_image(size), qcow2.empty_length(size))
        tool("check", "-f", "qcow2", base)
        create_file(str(top), qcow2.empty_image(size, "base"), qcow2.empty_length(size))
        tool("check", "-f", "qcow2", top)
        found = qcow2.parse_header(top.read_bytes()[:65536])
        assert (found.size, found.backing, found.backing_format, found.data_file) == (size, "base", "qcow2", False)
        said = subprocess.run(["qemu-img", "info", "-f", "qcow2", "--output=json", top], check=True, capture_output=True).stdout
        assert b'"virtual-size": %d' % size in said and b'"backing-filename-format": "qcow2"' in said
    for bad in (0, 511, (1 << 50) + 512):
        with pytest.raises(ValueError):
            qcow2.empty_image(bad)


def test_headers_made_by_the_tool_are_read(tmp_path):
    for compat in ("0.10", "1.1"):
        tool("create", "-f", "qcow2", "-o", f"compat={compat}", tmp_path / "b", "1M")
        tool("create", "-f", "qcow2", "-o", f"compat={compat}", "-b", "b", "-F", "qcow2", tmp_path / "t")
        found = qcow2.parse_header((tmp_path / "t").read_bytes()[:65536])
        assert (found.size, found.backing, found.backing_format) == (MIB, "b", "qcow2")
    for bad in (b"", b"QFI\xfb", b"\0" * 200, b"QFI\xfb" + b"\xff" * 200):
        with pytest.raises(ValueError):
            qcow2.parse_header(bad)


@pytest.mark.parametrize("kind", [Format.RAW, Format.QCOW2, Format.VMDK, Format.VHDX])
@pytest.mark.parametrize("into", [Format.RAW, Format.QCOW2])
def test_every_format_comes_in_whole(tmp_path, disk, kind, into):
    source, target = tmp_path / "source", tmp_path / "target"
    tool("convert", "-f", "raw", "-O", kind, disk, source)
    source.chmod(0o600)
    assert inspect(str(source), kind).virtual_size == 16 * MIB
    seen: list[float] = []
    found = convert(str(source), kind, str(target), into, progress=seen.append)
    assert found.virtual_size == 16 * MIB and seen[-1] == 1.0 and seen == sorted(seen)
    status = target.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o600) and status.st_blocks * 512 < 6 * MIB
    assert same(tmp_path, target, into, disk)
    assert sorted(os.listdir(tmp_path)) == ["back", "disk.raw", "source", "target"]


def hostile(tmp_path, disk, what):
    path = tmp_path / "bad"
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MIB)
    kind = Format.QCOW2
    match what:
        case "backing":
            tool("create", "-f", "qcow2", "-b", secret, "-F", "raw", path)
        case "json-backing":
            tool("create", "-u", "-f", "qcow2", "-b", 'json:{"driver":"file","filename":"/etc/shadow"}', "-F", "raw", path, "1M")
        case "data-file":
            tool("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on", path, "1M")
        case "encryption":
            tool("create", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
        case "vmdk extents":
            kind = Format.VMDK
            path.write_text(
                '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n\n'
                f'RW 2048 FLAT "{secret}" 0\n'
            )
        case "vmdk without capacity":
            kind = Format.VMDK
            path.write_bytes(struct.pack("<4sIIQ", b"KDMV", 1, 3, 0).ljust(MIB, b"\0"))
        case "vmdk delta":
            kind = Format.VMDK
            tool("create", "-f", "vmdk", tmp_path / "parent", "1M")
            tool("create", "-f", "vmdk", "-b", tmp_path / "parent", "-F", "vmdk", path)
    return path, kind


@pytest.mark.parametrize(
    "what", ["backing", "json-backing", "data-file", "encryption", "vmdk extents", "vmdk without capacity", "vmdk delta"]
)
def test_hostile_images_are_refused_by_name(tmp_path, disk, what):
    path, kind = hostile(tmp_path, disk, what)
    for call in (lambda: inspect(str(path), kind), lambda: convert(str(path), kind, str(tmp_path / "out"), Format.RAW)):
        with pytest.raises(Precondition) as caught:
            call()
        assert caught.value.reason == "HOSTILE_IMAGE"
    word = {"json-backing": "backing", "encryption": "encrypted", "vmdk delta": "backing"}.get(what, "extents" if "vmdk" in what else what)
    assert word in caught.value.message
    assert not (tmp_path / "out").exists() and not [n for n in os.listdir(tmp_path) if n.startswith(".image")]


def test_absurd_sizes_and_broken_images(tmp_path, disk):
    huge = tmp_path / "huge"
    create_file(str(huge), qcow2.empty_image(1 << 48), qcow2.empty_length(1 << 48))
    with pytest.raises(OutOfRange):
        inspect(str(huge), Format.QCOW2)
    with pytest.raises(OutOfRange):
        inspect(str(disk), Format.RAW, maximum=MIB)
    for kind in (Format.QCOW2, Format.VMDK, Format.VHDX):
        for name, data in (("empty", b""), ("noise", os.urandom(MIB)), ("cut", b"QFI\xfb\0\0\0\3")):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(Precondition) as caught:
                inspect(str(tmp_path / name), kind)
            assert caught.value.reason == "BAD_IMAGE"
    with pytest.raises(OutOfRange):
        inspect(str(tmp_path / "empty"), Format.RAW)


def test_the_child_can_read_nothing_of_ours(tmp_path):
    from volgate.backend.run import Limits, run

    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    done = run(["cat", str(secret)], timeout=5, user=65534, limits=Limits())
    assert done.returncode != 0 and b"ermission denied" in done.stderr


def test_cancelling_leaves_nothing(tmp_path, disk):
    tool("convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "q")

    def stop(_: float) -> None:
        raise Cancelled("stop")

    for source, kind in ((tmp_path / "q", Format.QCOW2), (disk, Format.RAW)):
        with pytest.raises(Cancelled):
            convert(str(source), kind, str(tmp_path / "out"), Format.RAW, progress=stop)
        with pytest.raises(Cancelled):
            convert(str(source), kind, str(tmp_path / "out"), Format.RAW, cancelled=lambda: True)
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "q"]


def test_a_chain_of_ours_is_flattened(tmp_path, disk):
    tool("convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "0")
    create_file(str(tmp_path / "1"), qcow2.empty_image(16 * MIB, "0"), qcow2.empty_length(16 * MIB))
    convert(str(tmp_path / "1"), Format.QCOW2, str(tmp_path / "out"), Format.RAW, chain=((str(tmp_path / "0"), Format.QCOW2),))
    assert same(tmp_path, tmp_path / "out", "raw", disk)
