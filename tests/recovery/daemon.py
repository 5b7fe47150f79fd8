"""A real `volgate serve` whose death is the subject: started, killed with all its children's fate looked at, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import grpc

from tests.recovery.calls import Caller
from volgate.v1 import pool_pb2

QUICK = """
[server]
stop_seconds = {stop}
[limits]
check_seconds = 600
scan_seconds = 3600
[imports]
allowed_directories = ["{images}"]
[exports]
allowed_directories = ["{exports}"]
[hosts.here]
uri = "{uri}"
[pools.p]
kind = "directory"
path = "{pool}"
"""


class Daemon:
    """One state directory, one pool `p`, one host `here`, a folder of images that may be imported, one for exports."""

    def __init__(self, base: Path, *, uri: str = "test:///default", pool: Path | None = None, extra: str = "", stop: float = 10.0) -> None:
        self.base = base
        self.state, self.images, self.pool = base / "state", base / "images", pool or base / "pool"
        self.exports = base / "exports"
        self.images.mkdir(exist_ok=True)
        self.exports.mkdir(exist_ok=True)
        self.log = base / "serve.log"
        self.config = base / "volgate.toml"
        places = {"images": self.images, "exports": self.exports, "pool": self.pool}
        self.config.write_text(QUICK.format(uri=uri, stop=stop, **places) + extra)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "volgate.cli", "serve", "--state-dir", str(self.state), "--config", str(self.config)]

    @property
    def address(self) -> str:
        return f"unix:{self.state}/volgate.sock"

    def start(self, timeout: float = 30.0) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self.process.returncode}: {self.tail()}")
            try:
                with Caller(self.address) as caller:
                    caller.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=0.5)
            except grpc.RpcError:
                time.sleep(0.02)
            else:
                return self
        self.process.kill()
        self.process.wait()
        raise TimeoutError(f"the daemon does not answer: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def caller(self, patience: float = 60.0, *, retries: bool = True) -> Caller:
        return Caller(self.address, patience, retries=retries)

    def descendants(self) -> list[int]:
        """Every process that the daemon started, directly or not."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (parent := _parent(int(entry.name))):
                parents.setdefault(parent, []).append(int(entry.name))
        found, todo = [], [self.pid]
        while todo:
            below = parents.get(todo.pop(), [])
            found += below
            todo += below
        return found

    def kill9(self) -> None:
        """Kill the daemon alone; whatever it started must be gone within two seconds."""
        children = self.descendants()
        os.kill(self.pid, signal.SIGKILL)
        self.reap(children)

    def reap(self, children: list[int]) -> None:
        """Wait for the dead daemon and see that nothing of it lives."""
        assert self.process
        self.process.wait(20)
        deadline = time.monotonic() + 2.0
        while left := [pid for pid in children if _parent(pid)]:
            assert time.monotonic() < deadline, f"outlived the daemon: {[_command(pid) for pid in left]}"
            time.sleep(0.01)

    def stop(self) -> int:
        """Ask it to end (SIGTERM); return its exit status."""
        assert self.process
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        status = self.stop()
        if kind is None:
            assert status == 0, self.tail()
            assert "bug" not in self.tail().lower(), self.tail()


def commands(daemon: Daemon, program: str) -> list[int]:
    """The daemon's running children of one program."""
    found = []
    for pid in daemon.descendants():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if program.encode() in b" ".join(words[:3]):
            found.append(pid)
    return found


def _parent(pid: int) -> int:
    """The parent of a process that lives; 0 for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[1])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return f"{pid} (gone)"
