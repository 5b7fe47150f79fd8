"""Reading an image where its data lie: the same bytes as a conversion gives, across layers; what is compressed is left to a conversion."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.plugins.directory_rig import io
from volgate.backend.image import stretches
from volgate.model import Format
from volgate.operations.transfer import ExportReader

MIB = 1 << 20
SIZE = 64 * MIB


def tool(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def assembled(reader: ExportReader) -> bytes:
    found = bytearray(reader.size)
    while piece := reader.next():
        offset, data = piece
        found[offset : offset + len(data)] = data
    return bytes(found)


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, the top one first: data only below, overwritten above, and taken away above."""
    base, middle, top = (tmp_path / f"{name}.qcow2" for name in ("base", "middle", "top"))
    tool("create", "-q", "-f", "qcow2", base, str(SIZE))
    tool("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", middle)
    tool("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    io("qcow2", "write -P 1 0 8M", str(base))
    io("qcow2", "write -P 2 2M 1M", str(middle))
    io("qcow2", "write -z 5M 1M", str(middle))
    io("qcow2", f"write -P 3 {SIZE - 65536} 64K", str(top))
    io("qcow2", "write -P 4 2100K 4K", str(top))
    return [top, middle, base]


def test_layers_are_read_as_a_conversion_reads_them(layers: list[Path], tmp_path: Path) -> None:
    tool("convert", "-f", "qcow2", "-O", "raw", layers[0], tmp_path / "raw")
    found = stretches(str(layers[0]), tuple((str(path), Format.QCOW2) for path in layers[1:]))
    assert found
    released: list[bool] = []
    reader = ExportReader.of_layers([str(path) for path in layers], *found, lambda: released.append(True))
    assert assembled(reader) == (tmp_path / "raw").read_bytes()
    before = len(os.listdir("/proc/self/fd"))
    reader.close()
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before - 3
    assert released == [True]


def test_an_image_without_data_is_all_zeroes(tmp_path: Path) -> None:
    tool("create", "-q", "-f", "qcow2", tmp_path / "empty", str(SIZE))
    found = stretches(str(tmp_path / "empty"), ())
    assert found == (SIZE, [])


def test_compressed_data_are_left_to_a_conversion(layers: list[Path], tmp_path: Path) -> None:
    tool("convert", "-c", "-f", "qcow2", "-O", "qcow2", layers[0], tmp_path / "small")
    assert stretches(str(tmp_path / "small"), ()) is None


def test_a_file_is_read_with_its_gaps_left_out(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(7 * MIB)
        file.write(b"x" * (3 * MIB))
    reader = ExportReader.of_file(path, lambda: None, temporary=True)
    assert not path.exists()
    pieces = list(iter(reader.next, None))
    reader.close()
    assert [(offset, len(data)) for offset, data in pieces] == [(number * MIB, MIB) for number in (7, 8, 9)]
