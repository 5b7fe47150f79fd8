"""Two protocols of JSON lines over unix sockets: QEMU's monitor (QMP), and the agent in the guest."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import time
from pathlib import Path
from typing import Any

__all__ = ["Agent", "Failed", "Monitor"]


class Failed(Exception):
    """The other end refused, or did not answer in time."""


class _Lines:
    """Objects out and in, a line each."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._buffer = b""
        try:
            self._socket.connect(str(path))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def send(self, message: dict[str, Any], before: bytes = b"") -> None:
        self._socket.sendall(before + json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed("no answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise Failed("no answer in time") from error
            if not data:
                raise Failed("the other end is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        with contextlib.suppress(ValueError):
            return dict(json.loads(line.lstrip(b"\xff")))
        return {}

    def ask(self, command: str, timeout: float, **arguments: Any) -> Any:
        self.send({"execute": command, "arguments": arguments})
        deadline = time.monotonic() + timeout
        while True:
            answer = self.receive(deadline - time.monotonic())
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]


class Monitor(_Lines):
    """QEMU's monitor."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        super().__init__(path, 30.0)
        self.receive(30.0)
        self.ask("qmp_capabilities", 30.0)

    def command(self, name: str, *, timeout: float = 30.0, **arguments: Any) -> Any:
        """Run a command. Raises Failed."""
        return self.ask(name, timeout, **arguments)


class Agent(_Lines):
    """The guest's agent. One at a time may be connected; a command's process goes on if it is closed."""

    def __init__(self, path: Path, timeout: float) -> None:
        """Connect, and wait until it answers. Raises Failed."""
        super().__init__(path, timeout)
        deadline = time.monotonic() + timeout
        while True:
            token = secrets.randbits(48)
            self.send({"execute": "guest-sync", "arguments": {"id": token}}, before=b"\xff")  # ends what an earlier client left half-said
            with contextlib.suppress(Failed):
                while self.receive(min(1.0, timeout)).get("return") != token:
                    pass
                return
            if time.monotonic() > deadline:
                raise Failed("the guest's agent does not answer")

    def start(self, argv: list[str], env: dict[str, str], *, capture: bool = True) -> int:
        """Start a process in the guest; return its pid."""
        words = [f"{name}={value}" for name, value in env.items()]
        answer = self.ask("guest-exec", 30.0, path=argv[0], arg=argv[1:], env=words, **{"capture-output": capture})
        return int(answer["pid"])

    def status(self, pid: int) -> tuple[int, str] | None:
        """The exit status of a process and what it printed; None while it runs."""
        answer = self.ask("guest-exec-status", 30.0, pid=pid)
        if not answer["exited"]:
            return None
        output = b"".join(base64.b64decode(answer.get(part, "")) for part in ("out-data", "err-data"))
        return answer.get("exitcode", 128 + answer.get("signal", 0)), output.decode(errors="replace").strip()
