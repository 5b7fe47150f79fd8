"""LUKS made of an empty device, by QEMU's own tool: whole, or begun again."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from volgate.connect import luks
from volgate.connection import BlockSource
from volgate.errors import Precondition
from volgate.secret import Secret

PASSPHRASE = "correct horse battery staple"
SIZE = 16 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    return path


def prepare(disk: Path) -> None:
    luks.prepare(BlockSource(str(disk)), Secret(PASSPHRASE), deadline=time.monotonic() + 60)


def opens(disk: Path) -> bool:
    """Whether QEMU opens it, and how it is read."""
    key = disk.with_name("key")
    key.write_text(PASSPHRASE)
    image = f"driver=luks,key-secret=key,file.filename={disk}"
    argv = ["qemu-io", "--object", f"secret,id=key,file={key}", "--image-opts", image, "-c", "write -q -P 7 0 4k", "-c", "read -P 7 0 4k"]
    return subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 0


def test_an_empty_device_becomes_luks_once(disk: Path) -> None:
    prepare(disk)
    made = disk.read_bytes()
    assert opens(disk) and made[luks.HEADER :] == bytes(SIZE - luks.HEADER)
    made = disk.read_bytes()
    prepare(disk)
    assert disk.read_bytes() == made


@pytest.mark.parametrize("writes", [1, 2])
def test_what_a_dead_one_began_is_finished(disk: Path, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    done, pwrite = list[int](), os.pwrite

    def dying(descriptor: int, data: bytes, offset: int) -> int:
        if len(done) == writes:
            raise Killed
        done.append(offset)
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "pwrite", dying)
        prepare(disk)
    assert not opens(disk)
    prepare(disk)
    assert opens(disk)


@pytest.mark.parametrize("at", [0, 4096, luks.HEADER - 1])
def test_what_holds_data_stays_as_it_is(disk: Path, at: int) -> None:
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    before = disk.read_bytes()
    with pytest.raises(Precondition) as refused:
        prepare(disk)
    assert refused.value.reason == "NOT_ENCRYPTED" and disk.read_bytes() == before


def test_what_is_too_small_is_refused(disk: Path) -> None:
    os.truncate(disk, luks.HEADER - 512)
    with pytest.raises(Precondition, match="LUKS needs more"):
        prepare(disk)
