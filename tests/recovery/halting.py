"""Stops a command of the daemon at its very begin, so that a kill hits it for certain however quick it is.

strace, on the process that starts all commands, injects SIGSTOP into `execve`; commands that nobody waits for go on at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from typing import Self

from tests.recovery.daemon import Daemon, commands

_LINE = re.compile(r"^(\d+) +(.*)$")


class Halting:
    """Inside the block the next command whose line holds `words` stands still; `caught` waits for it."""

    def __init__(self, daemon: Daemon, words: str) -> None:
        self._words = ", ".join(f'"{word}"' for word in words.split())
        self._pipe = daemon.base / "halting.pipe"
        (self._starter,) = commands(daemon, "volgate.forker")
        self._last: dict[int, str] = {}
        self._found = threading.Event()
        self._pid = 0

    def __enter__(self) -> Self:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._pipe)
        command = ["strace", "-f", "-qq", "-o", str(self._pipe), "-e", "trace=execve", "-e", "signal=STOP"]
        command += ["-e", "inject=execve:signal=STOP", "-p", str(self._starter)]
        self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + 10
        while _is_free(self._starter):
            assert time.monotonic() < deadline, "strace does not attach"
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._strace.kill()  # what it traced goes on without it
        self._strace.wait(10)
        self._reader.join(10)
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)

    def caught(self, timeout: float = 60.0) -> int:
        """The pid of the command, once it stands still."""
        assert self._found.wait(timeout), f"no command with {self._words}"
        return self._pid

    def go(self) -> None:
        """Let the command go on."""
        os.kill(self._pid, signal.SIGCONT)

    def _read(self) -> None:
        with self._pipe.open() as lines:
            for line in lines:
                if found := _LINE.match(line):
                    self._take(int(found[1]), found[2])

    def _take(self, pid: int, text: str) -> None:
        if not text.startswith("--- SIGSTOP"):
            self._last[pid] = text
            return
        call = self._last.pop(pid, "")
        if not self._pid and self._words in call and call.endswith("= 0"):
            self._pid = pid
            self._found.set()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _is_free(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as status:
        return "TracerPid:\t0\n" in status.read()
