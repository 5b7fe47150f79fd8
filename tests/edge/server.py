"""A real gateway process on a directory pool, for tests: started, killed with -9, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from volgate.v1 import pool_pb2, pool_pb2_grpc

if TYPE_CHECKING:
    from volgate_client import Client


_STARTER = ThreadPoolExecutor(1)  # a parent's death is that of the thread which started the child: this one lives as long as the run


class Server:
    """`volgate serve` as a process; it dies with the thread that started it, so that a test run that is killed leaves none."""

    def __init__(self, state: Path, *, config: str = "") -> None:
        self.state = state
        self.log = state.parent / (state.name + ".log")
        self.config = None
        if config:
            self.config = state.parent / (state.name + ".toml")
            self.config.write_text(config)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.state}/volgate.sock"

    def start(self, timeout: float = 20.0) -> Server:
        arguments = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "volgate.cli", "serve", "--state-dir", str(self.state)]
        if self.config:
            arguments += ["--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = _STARTER.submit(subprocess.Popen, arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL).result()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")
            if self._answers():
                return self
            time.sleep(0.02)
        raise TimeoutError(f"the server does not answer: {self.log.read_text()[-3000:]}")

    def _answers(self) -> bool:
        with grpc.insecure_channel(self.address) as channel:
            try:
                pool_pb2_grpc.PoolServiceStub(channel).ListPools(pool_pb2.ListPoolsRequest(), timeout=2.0)
            except grpc.RpcError:
                return False
        return True

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill9(self) -> None:
        assert self.process
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise
        return self.process.returncode

    def client(self, timeout: float = 60.0) -> Client:
        from volgate_client import Client

        return Client(self.address, timeout=timeout)
