"""What the story is played on: a narrator, a gateway process, the command line as a person would use it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Gateway", "Mismatch", "check", "say", "step"]

COMMAND_SECONDS = 90.0
START_SECONDS = 30.0
_BOLD, _DIM, _OFF = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "", "")
_began = time.monotonic()


class Mismatch(Exception):
    """What happened is not what was promised."""


def step(title: str) -> None:
    """Open a chapter."""
    print(f"\n{_BOLD}[{time.monotonic() - _began:5.1f} s] {title}{_OFF}", flush=True)


def say(text: str) -> None:
    """Explain."""
    print(f"    {text}", flush=True)


def check(what: str, found: object, expected: object) -> None:
    """Compare, and say so."""
    if found != expected:
        raise Mismatch(f"{what}: expected {expected!r}, found {found!r}")
    say(f"{_DIM}ok:{_OFF} {what}: {found}")


class Gateway:
    """One `volgate serve`, and the `volgate` command pointed at it."""

    def __init__(self, home: Path, libvirt_uri: str) -> None:
        """Nothing runs before :meth:`start`."""
        self.home = home
        self.state = home / "state"
        self.config = home / "volgate.toml"
        self.config.write_text(f'[hosts.local]\nuri = "{libvirt_uri}"\n')
        self._process: subprocess.Popen[bytes] | None = None
        self._program = Path(sys.executable).with_name("volgate")

    def start(self) -> None:
        """Start the gateway and wait until it answers."""
        argv = [str(self._program), "serve", "--config", str(self.config), "--state-dir", str(self.state)]
        print(f"    $ volgate {shlex.join(argv[1:])} &", flush=True)
        with (self.home / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while self._run("pool", "list").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Mismatch(f"the gateway did not start:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def kill9(self) -> None:
        """Kill the gateway as a crash would."""
        assert self._process
        print(f"    $ kill -9 {self._process.pid}", flush=True)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> None:
        """Stop the gateway gracefully; it must end with status 0."""
        assert self._process
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            raise Mismatch("the gateway did not stop within 30 s") from None
        check("the gateway's exit status", self._process.returncode, 0)

    def end(self) -> None:
        """End what still runs, however the story went."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def log(self) -> str:
        """Everything that the gateway wrote."""
        path = self.home / "gateway.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def volgate(self, *words: str, exit_code: int = 0) -> str:
        """Run a command as a person does, show it and what it printed."""
        print(f"    $ volgate {shlex.join(words)}", flush=True)
        done = self._run(*words)
        for line in (done.stdout + done.stderr).rstrip().splitlines():
            print(f"      {_DIM}{line}{_OFF}", flush=True)
        if done.returncode != exit_code:
            raise Mismatch(f"volgate {shlex.join(words)} ended with {done.returncode}, expected {exit_code}")
        return done.stdout

    def ask(self, *words: str) -> Any:
        """Run a command as a program does; return its JSON."""
        done = self._run("--output", "json", *words)
        if done.returncode:
            raise Mismatch(f"volgate {shlex.join(words)}: {done.stderr}")
        return json.loads(done.stdout)

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command and do not wait for it."""
        print(f"    $ volgate {shlex.join(words)} &", flush=True)
        return subprocess.Popen(self._argv(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _argv(self, *words: str) -> list[str]:
        return [str(self._program), "--server", f"unix:{self.state}/volgate.sock", *words]

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._argv(*words), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS
        )
