"""A machine to install packages on: this one's Debian, booted again over an overlay in memory. The real one is not touched."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

__all__ = ["Machine"]

_BOOT = Path(__file__).with_name("boot.sh")
_STARTER = ThreadPoolExecutor(1)  # a parent's death is that of the thread which started the child: this one lives as long as the run
_SECONDS = 120


class Machine:
    """`with Machine() as machine`: root's commands run in it, and it ends with the block."""

    def __init__(self) -> None:
        self._top = Path(tempfile.mkdtemp(prefix="vg-machine-", dir="/tmp"))
        self._log = Path(f"{self._top}.log")

    def __enter__(self) -> Self:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "bash", str(_BOOT), str(self._top)]
        with self._log.open("wb") as log:
            self._process = _STARTER.submit(subprocess.Popen, command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).result()
        self._mounted = Path(f"/proc/{self._process.pid}/root{self._top}")  # as its own mount namespace shows it
        deadline = time.monotonic() + 60
        while not self._booted():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if (pid := self._pid()) and self._process.poll() is None:
            subprocess.run(["kill", "-KILL", str(pid)], check=True)
        self._process.wait(60)
        shutil.rmtree(self._top)
        self._log.unlink()

    def _pid(self) -> int:
        try:
            return int((self._mounted / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _booted(self) -> bool:
        return bool(self._pid()) and self.status("systemctl", "is-active", "--quiet", "lab.target") == 0

    def path(self, inside: str) -> Path:
        """A file of the machine, from outside; it must not pass an absolute symbolic link."""
        return Path(f"/proc/{self._pid()}/root{inside}")

    def changed(self) -> set[str]:
        """Every path that was made, changed or taken away since the boot."""
        upper = self._mounted / "up"
        return {f"/{path.relative_to(upper)}" for path in upper.rglob("*")}

    def _within(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._pid()}", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root"]
        clean = [
            "env",
            "-i",
            "-C",
            "/",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "LANG=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]
        return subprocess.run(
            [*enter, *clean, *command], check=False, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )

    def status(self, *command: str) -> int:
        """The exit status of a command."""
        return self._within(command).returncode

    def run(self, *command: str) -> str:
        """What a command said; one that fails is an AssertionError with that."""
        done = self._within(command)
        assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout + done.stderr
