"""A directory pool that other controllers serve too: names are held against them, and nobody's work is cleared away."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from volgate.errors import Busy, VolgateError
from volgate_plugins.directory import beside
from volgate_plugins.directory.beside import FILE, Beside

OTHER = """
import sys
from volgate_plugins.directory.beside import Beside
with Beside(sys.argv[1]).holding(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process that holds a name."""

    def __init__(self, root: Path, name: str) -> None:
        argv = [sys.executable, "-c", OTHER, str(root), name]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "held\n"

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / FILE).touch()
    return tmp_path


def test_a_name_is_held_against_another_process_until_that_ends(root, monkeypatch):
    monkeypatch.setattr(beside, "_PATIENCE", 0.3)
    with Other(root, "v") as other:
        with pytest.raises(Busy, match="v is worked on"), Beside(str(root)).holding("v"):
            raise AssertionError
        with Beside(str(root)).holding("w"):
            pass
        monkeypatch.setattr(beside, "_PATIENCE", 60.0)
        got = threading.Event()

        def wait() -> None:
            with Beside(str(root)).holding("v"):
                got.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.3)
        other.process.kill()
        assert got.wait(30), "the kernel gives it free"
        waiting.join(10)


def test_nobody_is_alone_while_another_works(root):
    with Beside(str(root)).alone() as alone:
        assert alone
    with Other(root, "v"), Beside(str(root)).alone() as alone:
        assert not alone
    with Beside(str(root)).holding("v"), Beside(str(root)).alone() as alone:
        assert not alone, "our own work counts"


def test_nobody_begins_while_the_pool_is_cleared(root, monkeypatch):
    monkeypatch.setattr(beside, "_PATIENCE", 0.2)
    with Beside(str(root)).alone() as alone, pytest.raises(Busy, match="the pool is opened"):
        assert alone
        with Beside(str(root)).holding("v"):
            raise AssertionError


def test_a_pool_that_is_not_mounted_gets_no_lock_file(tmp_path):
    with Beside(str(tmp_path)).holding("v"):
        assert not (tmp_path / FILE).exists()


def test_a_file_system_without_locks_serves_one_controller(root, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(beside._NONE[0], "no locks")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with Beside(str(root)).holding("v"), Beside(str(root)).alone() as alone:
        assert alone


@pytest.mark.parametrize(("number", "told"), [(errno.EROFS, ""), (errno.ENOENT, ""), (errno.EIO, "IO_ERROR"), (errno.EACCES, "DENIED")])
def test_a_file_that_cannot_be_opened_is_an_answer_or_for_others_to_tell(root, monkeypatch, number, told):
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beside.os, "open", refuse)
    if not told:
        with Beside(str(root)).holding("v"):
            return
    with pytest.raises(VolgateError) as refused, Beside(str(root)).holding("v"):
        raise AssertionError
    assert refused.value.reason == told


def test_nothing_stays_open(root):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Beside(str(root)).holding("v"):
            pass
        with Beside(str(root)).alone():
            pass
    assert len(os.listdir("/proc/self/fd")) == before
