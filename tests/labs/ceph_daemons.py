"""The daemons of a private Ceph cluster: plain processes that end with this one; they are killed, hang, and come back as a test asks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["START_SECONDS", "Daemons", "run"]

START_SECONDS = 120.0
STOP_SECONDS = 30.0
_starter = ThreadPoolExecutor(1)  # a daemon dies with the thread that started it: this one lives as long as we do


class Daemons:
    """Those of one cluster, by name: `mon.a`, `mon.b`, ..., `mgr.x`, `osd.0`, `osd.1`, ..."""

    def __init__(self, base: Path, monitors: int, osds: int, netns: str) -> None:
        """Nothing runs yet. `netns` names a network namespace, "" for ours."""
        self.base, self.osds = base, osds
        self.mons = tuple("abcdefghi"[:monitors])
        self._netns = netns
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def config(self) -> Path:
        """A ceph.conf for Ceph's own commands, which find the keyrings by it."""
        return self.base / "ceph.conf"

    @property
    def daemons(self) -> tuple[str, ...]:
        """Their names, in the order of their start."""
        return (*(f"mon.{name}" for name in self.mons), "mgr.x", *(f"osd.{number}" for number in range(self.osds)))

    def pid(self, name: str) -> int:
        """The process of a daemon."""
        return self._processes[name].pid

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return name in self._processes and self._processes[name].poll() is None

    def kill(self, name: str) -> None:
        """End a daemon without warning, and wait until it is gone."""
        self.end(name, signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """Let a daemon hang (SIGSTOP); return once none of its threads runs."""
        os.kill(self.pid(name), signal.SIGSTOP)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_state(task) not in "TZX" for task in Path(f"/proc/{self.pid(name)}/task").glob("*/stat")):
            assert time.monotonic() < deadline, f"{name} does not stop"
            time.sleep(0.005)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        os.kill(self.pid(name), signal.SIGCONT)

    def launch(self, name: str) -> None:
        """Start a daemon unless it runs."""
        if self.is_running(name):
            return
        kind, _, number = name.partition(".")
        argv = [f"ceph-{kind}", "-f", "-i", number, "-c", str(self.config), "--keyring", str(self.base / kind / number / "keyring")]
        with (self.base / "log" / f"{name}.out").open("ab") as log:
            whole = ["setpriv", "--pdeathsig=KILL", *self.inside_words(), *argv]
            begun = _starter.submit(subprocess.Popen, whole, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
            self._processes[name] = begun.result()

    def end(self, name: str, how: signal.Signals) -> None:
        """End a daemon, also one that hangs, and wait until it is gone."""
        if not self.is_running(name):
            return
        process = self._processes[name]
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)

    def end_all(self, how: signal.Signals) -> None:
        """End every daemon, the last that was started first."""
        for name in reversed(self.daemons):
            self.end(name, how)

    def check_alive(self, error: object = "") -> None:
        """Fail if a daemon has ended by itself, or was ended: nobody need wait for it."""
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode} ({error}): {self.log()}"

    def log(self) -> str:
        """What the daemons said on their way out."""
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in sorted((self.base / "log").glob("*.out")))

    def inside_words(self) -> Sequence[str]:
        """What stands before a command that is to run in the cluster's network."""
        return ["nsenter", f"--net=/run/netns/{self._netns}", "--"] if self._netns else []


def run(*argv: str) -> None:
    """Run a command of Ceph's to its end; fail with what it said."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=START_SECONDS, cwd="/", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


def _state(stat: Path) -> str:
    """What a thread does, as the kernel says: T if it is stopped; X if it is gone."""
    try:
        return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
