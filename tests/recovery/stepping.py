"""Kills a daemon right after the N-th system call that changed something below a folder, counted over all its threads and children.

strace injects SIGSTOP into each such call, so the whole process stands still behind it; the line that strace wrote says what it
was, and the daemon is then let go on or killed. (`inject=...:signal=KILL:when=N` alone would count each thread by itself.)
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

from tests.recovery.daemon import Daemon

CALLS = (
    "openat,creat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,copy_file_range,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "chmod,fchmod,fchmodat,chown,fchown,fchownat,setxattr,fsetxattr,utimensat,ioctl"
)
_LINE = re.compile(r"^(\d+) +(.*)$")
_ASKS_LIBVIRT = re.compile(r"write\(\d+<socket:")
_ONLY_LOOKS = re.compile(r"openat\((?!.*O_(CREAT|TRUNC))|ioctl\((?!.*FICLONE)")


class Stepping:
    """Traces a running daemon inside a block; `point` counts from 1, 0 kills never. `killed_at` is the call it died behind."""

    def __init__(self, daemon: Daemon, point: int, *, libvirt: bool = False) -> None:
        """`libvirt`: what is written to its socket counts too."""
        self.daemon = daemon
        self.point = point
        self.libvirt = libvirt
        self.seen = 0
        self.killed_at = ""
        self.children: list[int] = []
        self._pipe = daemon.base / "strace.pipe"
        self._last: dict[int, str] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._pipe)
        targets = [self.daemon.pid, *self.daemon.descendants()]
        command = ["strace", "-f", "-qq", "-y", "-s", "1", "-o", str(self._pipe), "-e", f"trace={CALLS}", "-e", "signal=STOP"]
        command += ["-e", f"inject={CALLS}:signal=STOP", *(part for pid in targets for part in ("-p", str(pid)))]
        self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + 10
        while not all(_traced(pid) for pid in targets):
            assert self._strace.poll() is None, self._strace.stderr.read() if self._strace.stderr else ""
            assert time.monotonic() < deadline, "strace does not attach"
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        if not self.killed_at:
            self._strace.terminate()
        try:
            self._strace.wait(10)  # after a kill it ends with the last of those that it traces; asked to end earlier, it may wait for ever
        except subprocess.TimeoutExpired:
            self._strace.kill()  # what it traced goes on, or stands still until it is continued below
            self._strace.wait(10)
        self._reader.join(10)
        if self._strace.stderr:
            self._strace.stderr.close()
        if self.killed_at:
            self.daemon.reap(self.children)
        else:
            for pid in (self.daemon.pid, *self.daemon.descendants()):
                os.kill(pid, signal.SIGCONT)

    def _read(self) -> None:
        with self._pipe.open() as lines:
            for line in lines:
                if found := _LINE.match(line):
                    self._take(int(found[1]), found[2])

    def _take(self, thread: int, text: str) -> None:
        if not text.startswith("--- SIGSTOP"):
            self._last[thread] = self._last.get(thread, "") + text if "resumed>" in text else text
            return
        call = self._last.pop(thread, "")
        if not self.killed_at and self._counts(call):
            self.seen += 1
            if self.seen == self.point:
                self.killed_at = call
                self.children = self.daemon.descendants()
                os.kill(self.daemon.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(_process(thread), signal.SIGCONT)

    def _counts(self, call: str) -> bool:
        if self.libvirt and _ASKS_LIBVIRT.match(call):
            return True
        return str(self.daemon.base) in call and not _ONLY_LOOKS.search(call) and self.daemon.log.name not in call


def _traced(pid: int) -> bool:
    found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return all("TracerPid:\t0\n" not in text for text in found)


def _process(thread: int) -> int:
    text = Path(f"/proc/{thread}/status").read_text()
    return int(text.partition("Tgid:")[2].split()[0])
