"""Processes that a row is about: started, waited for until they answer, weighed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc


@contextmanager
def running(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m ARGUMENTS...` and end it."""
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_answered(socket: Path, call: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait for the socket, then for the first answer."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if socket.exists():
            try:
                call()
                return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        time.sleep(0.002)
    raise TimeoutError(f"{socket} does not answer within {timeout} s")


def pss(process: int) -> int:
    """Return a process's proportional set size, bytes."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024


def family(process: int) -> dict[str, int]:
    """Return the proportional set sizes of a process and all below it, by the module or program that each runs."""
    found: dict[str, int] = {}
    waiting = [process]
    while waiting:
        one = waiting.pop()
        words = Path(f"/proc/{one}/cmdline").read_bytes().decode().split("\0")
        name = words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name
        found[name] = found.get(name, 0) + pss(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += [int(child) for child in children.read_text().split()]
    return found
