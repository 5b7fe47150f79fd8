"""A real array process and pools on it, for the tests of the memory plugin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from volgate.backend import PoolContext, SnapshotSpec, VolumeId
from volgate.model import Format, Source, SourceKind, VolumeSpec
from volgate_plugins.memory import Fault, Memory, MemorySettings
from volgate_plugins.memory.client import Client
from volgate_plugins.memory.media import MARK
from volgate_plugins.memory.server import Status

MIB = 1 << 20
_STARTER = ThreadPoolExecutor(1)  # a parent's death is that of the thread which started the child: this one lives as long as the run


class Array:
    """`python -m volgate_plugins.memory.array` as a process; it dies with the test run."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.socket = folder / "array.sock"
        self.root = folder / "bytes"
        self.options = options
        self.log = folder / "array.log"
        self.pools: list[Pool] = []
        self.start()

    @classmethod
    def of(cls, socket: Path) -> Array:
        """One that somebody else started: only to be asked."""
        made = cls.__new__(cls)
        made.socket = socket
        made.root = socket.parent / "bytes"
        return made

    def start(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "volgate_plugins.memory.array", "--socket", str(self.socket)]
        with self.log.open("ab") as log:
            arguments = [*command, "--directory", str(self.root), *self.options]
            self.process = _STARTER.submit(subprocess.Popen, arguments, stdout=log, stderr=log).result()
        self.status()

    def client(self, call_seconds: float = 30.0) -> Client:
        return Client(str(self.socket), connect_seconds=20.0, call_seconds=call_seconds)

    def ask(self, verb: str, answer=None, /, **arguments):
        client = self.client()
        try:
            return client.call(verb, answer, **arguments)
        finally:
            client.close()

    def status(self) -> Status:
        return self.ask("hello", Status)

    def fault(self, effect: str, verb: str, **more) -> None:
        self.ask("add_fault", fault=Fault(effect=effect, verb=verb, **more))

    def kill9(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        for pool in self.pools:
            pool.backend.close()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)

    def said(self) -> str:
        return self.log.read_text()

    def objects(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file() and path.name not in (".probe", MARK)}

    def pool(self, **settings) -> Pool:
        self.pools.append(Pool(MemorySettings(socket=str(self.socket), **settings)))
        return self.pools[-1]


class Pool:
    """A backend in this process, and short words for it."""

    def __init__(self, settings: MemorySettings, name: str = "p", instance: str = "gateway-1") -> None:
        self.backend = Memory.open(settings, PoolContext(name, instance))

    def spec(self, name: str, size: int = MIB, **more) -> VolumeSpec:
        return VolumeSpec(
            name=name, uid=more.pop("uid", None) or str(uuid.uuid4()), size=size, format=more.pop("format", Format.RAW), **more
        )

    def create(self, name: str, size: int = MIB, **more) -> VolumeId:
        return VolumeId(name, self.backend.create_volume(self.spec(name, size, **more)).uid)

    def source(self, of: VolumeId, snapshot: str = "") -> Source:
        return Source(SourceKind.SNAPSHOT if snapshot else SourceKind.VOLUME, of.name, of.uid, "s" if snapshot else "", snapshot)

    def clone(self, name: str, of: VolumeId, snapshot: str = "", **more) -> VolumeId:
        return self.create(name, source=self.source(of, snapshot), **more)

    def snapshot(self, volume: VolumeId, name: str) -> str:
        return self.backend.create_snapshot(volume, SnapshotSpec(name, str(uuid.uuid4()))).uid

    def write(self, volume: VolumeId, data: bytes, offset: int = 0) -> None:
        with open(self.backend.connection(volume, host="h").path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, volume: VolumeId, length: int, offset: int = 0, snapshot: str = "") -> bytes:
        with open(self.backend.image(volume, snapshot).path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def names(self) -> list[str]:
        return [volume.name for volume in self.backend.list_volumes()]


def until(true, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_stopped(pid: int) -> bool:
    """Whether every thread of a process stands still: SIGSTOP reaches them one after the other."""
    states = [Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()[0] for task in os.listdir(f"/proc/{pid}/task")]
    return set(states) == {"T"}


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
