"""strace on a worker: its system calls are written down, or one of them kills it, fails, or takes its time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from volgate.backend import run as commands
from volgate.spawner import Child

__all__ = ["CHANGING", "FILES", "MUTATING", "Line", "Point", "Stall", "Trace", "descendants", "error", "hang", "kill"]

FILES = (
    "openat,creat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,copy_file_range,fsync,fdatasync,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "chmod,fchmod,fchmodat,chown,fchown,fchownat,setxattr,fsetxattr,ioctl"
)
"""What changes files, or makes the change durable."""
MUTATING = f"{FILES},connect,sendto,sendmsg,sendmmsg"
"""What changes the world outside: files, and what is sent to others. The worker's own answer is among them."""
CHANGING = ",".join(name for name in MUTATING.split(",") if name not in ("openat", "ioctl", "connect"))
"""Those that no reading call makes."""
_LINE = re.compile(r"^(\d+) +(.*)$")
_NAME = re.compile(r"^(\w+)\(")
_NO_FILE = re.compile(r"^\w+\(\d+<(anon_inode|pipe|socket|UNIX|TCP)")
_SECONDS = 60.0
_LEAVE_SECONDS = 0.5
_LOOKS = 10


class Point(NamedTuple):
    """The N-th call of one name that a thread makes: strace counts each name by itself."""

    name: str
    number: int


def kill(point: Point) -> str:
    """Kill the process as it enters the call."""
    return f"{point.name}:signal=KILL:when={point.number}"


def error(name: str, point: Point) -> str:
    """Let the call fail, undone."""
    return f"{point.name}:error={name}:when={point.number}"


def hang(seconds: float, point: Point) -> str:
    """Let the call take its time before it is made."""
    return f"{point.name}:delay_enter={int(seconds * 1e6)}:when={point.number}"


@dataclass(frozen=True, slots=True)
class Line:
    """One system call: the thread, and strace's words of it, with the paths behind descriptors."""

    thread: int
    text: str


class Trace:
    """Traces a process and all its descendants within the block."""

    def __init__(self, pid: int, calls: str, fault: str = "", *, only: Sequence[int] = (), alone: bool = False) -> None:
        """`fault` is what `kill`, `error` or `hang` say; `only` are the threads that it meets, all of now and to come if none is named.

        `alone`: without the processes that the process started before, its spawner and their commands.

        Raises FileNotFoundError in words if there is no strace.
        """
        if shutil.which("strace") is None:
            raise FileNotFoundError("strace is needed for the faults of the suite: apt-get install strace")
        self._pids = list(only) or [pid, *(() if alone else descendants(pid))]
        self._stack = contextlib.ExitStack()
        self._command = [*(() if only else ("-f",)), "-qq", "-y", "-s", "256", "-e", f"trace={calls}", "-e", "signal=none"]
        self._command += ["-e", f"inject={fault}"] if fault else []
        self._strace: Child | None = None
        self.lines: list[Line] = []

    def __enter__(self) -> Self:
        self._out = self._stack.enter_context(tempfile.NamedTemporaryFile(prefix="volgate-conform-"))
        said = self._stack.enter_context(tempfile.NamedTemporaryFile(prefix="volgate-conform-"))
        targets = [word for pid in self._pids for word in ("-p", str(pid))]
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a descriptor is what is wanted
            self._strace = commands.spawner().spawn(
                ["strace", "-o", self._out.name, *self._command, *targets], descriptors=(nothing.fileno(), said.fileno(), said.fileno())
            )
        self._stack.callback(self._strace.close)
        deadline = time.monotonic() + _SECONDS
        while not all(_traced(pid) for pid in self._pids):
            if not _lives(self._strace.pid) or time.monotonic() > deadline:
                told = Path(said.name).read_text(errors="replace")
                self._stack.close()
                raise RuntimeError(f"strace does not attach (it needs the right to trace, such as root's): {told}")
            time.sleep(0.002)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._strace is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._strace.pid, signal.SIGTERM)  # what it traces goes on
        try:
            self._strace.wait(_LEAVE_SECONDS)
        except TimeoutError:
            self._strace.kill()  # while it lets a call wait it may not hear; what it traces goes on without it too
            self._strace.wait(_SECONDS)
        text = Path(self._out.name).read_text(errors="replace")
        self.lines = [Line(int(found[1]), found[2]) for line in text.splitlines() if (found := _LINE.match(line))]
        self._stack.close()

    def points(self, *, of_files: bool = False) -> list[Point]:
        """Every call that a thread made, in order, each told apart from others of its name by its number.

        `of_files`: without those on what lies in no file system, by which threads wake each other: no disk makes them fail.
        """
        counts = Counter[tuple[int, str]]()
        found = dict[Point, None]()
        for line in self.lines:
            if (name := _NAME.match(line.text)) is not None:
                counts[line.thread, name[1]] += 1
                if not (of_files and _NO_FILE.match(line.text)):
                    found[Point(name[1], counts[line.thread, name[1]])] = None
        return list(found)


class Stall:
    """Within the block the one thread of a process that comes to a fault first stands still; no other does after `settle`."""

    def __init__(self, pid: int, calls: str, fault: str) -> None:
        """`fault` is what `hang` says."""
        self._pid, self._calls, self._fault = pid, calls, fault
        self._traces: dict[int, contextlib.ExitStack] = {}

    def __enter__(self) -> Self:
        for entry in os.listdir(f"/proc/{self._pid}/task"):  # noqa: PTH208  # names are all that is wanted
            if (thread := int(entry)) != self._pid:
                self._traces[thread] = contextlib.ExitStack()
                self._traces[thread].enter_context(Trace(self._pid, self._calls, self._fault, only=[thread]))
        return self

    def __exit__(self, *_: object) -> None:
        for trace in self._traces.values():
            trace.close()

    def settle(self) -> None:
        """Wait until a thread stands still, and let go of the others. Raises TimeoutError if none does."""
        deadline = time.monotonic() + _SECONDS
        looks = {thread: [""] for thread in self._traces}
        while not (still := [thread for thread, seen in looks.items() if len(seen) > _LOOKS]):
            if time.monotonic() > deadline:
                raise TimeoutError("no thread came to the call that was to stand still")
            time.sleep(0.01)
            for thread, seen in looks.items():
                now = _stopped(f"{self._pid}/task/{thread}")
                looks[thread] = [*seen, now] if now and now == seen[-1] else [now]
        for thread, trace in self._traces.items():
            if thread != still[0]:
                trace.close()


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  # names are all that is wanted
        if entry.isdigit() and (parent := _parent(int(entry))):
            parents.setdefault(parent, []).append(int(entry))
    found, left = list[int](), [pid]
    while left:
        below = parents.get(left.pop(), [])
        found += below
        left += below
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _traced(pid: int) -> bool:
    """Whether a tracer has every thread of a process; one that is gone needs none."""
    try:
        alone = Path(f"/proc/{pid}/status").read_text().partition("Tgid:")[2].split()[0] != str(pid)
        threads = [Path(f"/proc/{pid}")] if alone else list(Path(f"/proc/{pid}/task").iterdir())
        return all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)
    except OSError:
        return True


def _lives(pid: int) -> bool:
    return _state(str(pid)) not in "ZX"


def _state(process: str) -> str:
    """The letter of a process, or of a thread of it; X if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return "X"


def _stopped(thread: str) -> str:
    """How often a thread has slept, if its tracer holds it now: it stops for a moment at each of its calls; "" if it goes on."""
    with contextlib.suppress(OSError):
        told = dict(line.split(":", 1) for line in Path(f"/proc/{thread}/status").read_text().splitlines())
        return told["voluntary_ctxt_switches"].strip() if told["State"].split()[0] == "t" else ""
    return ""
