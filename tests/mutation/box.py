"""Where a mutant lives: everything is read-only but one folder of its own, and nothing that it starts outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "confine", "replace_file", "run_apart"]

_NEW_MOUNTS, _NEW_PROCESSES = 0x00020000, 0x20000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8}
_BEGUN = b"begun\n"
_LATE = 99
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a box ended: with an answer, or without one because it took too `long`, or died."""

    answer: Any
    long: bool


def confine() -> None:
    """Make every file system read-only for this process and what it starts. Raises OSError: it needs root."""
    _unshare(_NEW_MOUNTS)
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        place, options = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]), line.split()[5].split(",")
        with contextlib.suppress(FileNotFoundError):  # something else is mounted over it
            _mount("none", place, "", _REMOUNT | _BIND | _READ_ONLY | sum(_FLAGS.get(option, 0) for option in options))


def replace_file(path: str, content: str, folder: str) -> None:
    """Show other content in place of a file, in this box alone; a copy lies in `folder`."""
    other = f"{folder}/replaced"
    Path(other).write_text(content, encoding="utf-8")
    _mount(other, path, "", _BIND)


def run_apart(folder: str, task: Callable[[], Any], seconds: float) -> Ended:
    """Run `task`, whose answer is JSON, in a process for which `folder` is empty. Nothing that it began goes on.

    Raises RuntimeError if the box could not be made.
    """
    reading, writing = os.pipe()
    keeper = os.fork()
    if not keeper:
        with _last():
            _keep(folder, task, writing, seconds)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
    if not told.startswith(_BEGUN):
        raise RuntimeError(f"no box could be made, status {status}")
    answer = told.removeprefix(_BEGUN)
    return Ended(json.loads(answer) if answer.endswith(b"\n") else None, status == _LATE)


def _keep(folder: str, task: Callable[[], Any], writing: int, seconds: float) -> None:
    """Make the box, and wait for its first process: with that one, the kernel ends all others."""
    _unshare(_NEW_MOUNTS | _NEW_PROCESSES)
    _mount("scratch", folder, "tmpfs", 0)
    first = os.fork()
    if not first:
        with _last():
            _mount("proc", "/proc", "proc", 0)
            os.write(writing, _BEGUN)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(json.dumps(task()).encode() + b"\n")
    os.close(writing)
    watch = select.poll()
    watch.register(os.pidfd_open(first), select.POLLIN)
    late = not watch.poll(seconds * 1000)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    os._exit(_LATE if late else 0)


@contextlib.contextmanager
def _last() -> Iterator[None]:
    """See that a forked process does no more than its block."""
    try:
        yield
        os._exit(0)
    except BaseException:  # whatever it was: the server goes on in its own process
        traceback.print_exc()
    finally:
        os._exit(1)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")


def _mount(what: str, place: str, kind: str, flags: int) -> None:
    if _libc.mount(what.encode(), place.encode(), kind.encode() or None, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
