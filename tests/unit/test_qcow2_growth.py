"""Growing a qcow2 image by its header: QEMU's own tools find the result whole, and what needs more is left to them."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from tests.plugins.directory_rig import io
from volgate.backend.files import create_file
from volgate.backend.qcow2 import CLUSTER, empty_image, empty_length, growth
from volgate.errors import InUse
from volgate_plugins.directory.sources import _grow_header

GIB = 1 << 30
ODD = GIB + 4096


def tool(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def size_of(image: Path) -> int:
    return int(json.loads(tool("info", "--output=json", image))["virtual-size"])


def header_of(image: Path) -> bytes:
    return image.read_bytes()[:CLUSTER]


@pytest.fixture(params=["ours", "qemu-img"])
def image(request, tmp_path: Path) -> Path:
    made = tmp_path / "image.qcow2"
    if request.param == "ours":
        create_file(str(made), empty_image(ODD), empty_length(ODD))
    else:
        tool("create", "-q", "-f", "qcow2", made, str(ODD))
    return made


def test_an_image_grows_and_keeps_its_data(image: Path) -> None:
    io("qcow2", "write -P 7 0 1M", str(image))
    io("qcow2", f"write -P 8 {GIB} 4096", str(image))
    for size in (2 * GIB, 3 * GIB + 4096, 4096 * GIB):
        assert _grow_header(str(image), size)
        assert size_of(image) == size
        tool("check", "-q", "-f", "qcow2", image)
    io("qcow2", "read -P 7 0 1M", str(image))
    io("qcow2", f"read -P 8 {GIB} 4096", str(image))
    io("qcow2", f"read -P 0 {ODD} 1M", str(image))
    io("qcow2", f"write -P 9 {4095 * GIB} 64K", str(image))
    io("qcow2", f"read -P 9 {4095 * GIB} 64K", str(image))
    tool("check", "-q", "-f", "qcow2", image)


def test_more_than_the_table_has_room_for_is_left_to_qemu(image: Path) -> None:
    before = header_of(image)
    assert not _grow_header(str(image), 4097 * GIB)
    assert header_of(image) == before


def test_a_table_with_something_behind_its_end_is_left_to_qemu(image: Path) -> None:
    found = growth(header_of(image), 2 * GIB)
    assert found
    with image.open("r+b") as file:
        file.seek(found.spare_at)
        file.write(b"\1")
    assert not _grow_header(str(image), 2 * GIB)
    assert size_of(image) == ODD


def test_layers_snapshots_bitmaps_and_features_are_left_to_qemu(tmp_path: Path) -> None:
    base, over = tmp_path / "base.qcow2", tmp_path / "over.qcow2"
    tool("create", "-q", "-f", "qcow2", base, str(2 * GIB))
    tool("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", over, str(GIB))
    assert growth(header_of(over), 2 * GIB) is None, "the layer below would show through"
    assert growth(header_of(base), 3 * GIB)
    assert growth(header_of(base), 2 * GIB) is None, "nothing to do"
    assert growth(header_of(base), GIB) is None, "never a shrink"
    assert growth(header_of(base), 3 * GIB + 1) is None, "no whole number of sectors"
    tool("bitmap", "--add", base, "marks")
    assert growth(header_of(base), 3 * GIB) is None
    tool("bitmap", "--remove", base, "marks")
    tool("snapshot", "-c", "inside", base)
    assert growth(header_of(base), 3 * GIB) is None
    old = tmp_path / "old.qcow2"
    tool("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, str(GIB))
    assert growth(header_of(old), 2 * GIB) is None
    dirty = bytearray(empty_image(GIB)[0][1].ljust(CLUSTER, b"\0"))
    struct.pack_into(">Q", dirty, 72, 1)
    assert growth(bytes(dirty), 2 * GIB) is None


def test_a_table_at_the_end_of_a_short_file_is_left_to_qemu(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    tool("create", "-q", "-f", "qcow2", image, str(ODD))
    assert image.stat().st_size % CLUSTER
    assert not _grow_header(str(image), 2 * GIB)


def test_an_image_that_qemu_has_open_is_refused(image: Path) -> None:
    io("qcow2", "write -P 7 0 1M", str(image))
    with subprocess.Popen(["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        holder.stdin.write(b"length\n")
        holder.stdin.flush()
        assert holder.stdout.readline()
        with pytest.raises(InUse):
            _grow_header(str(image), 2 * GIB)
        holder.stdin.write(b"quit\n")
        holder.stdin.flush()
    assert _grow_header(str(image), 2 * GIB)
