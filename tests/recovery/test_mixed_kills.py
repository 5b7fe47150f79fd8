"""200 mixed calls, 40 in flight, kill -9 at a random moment, the same calls again: the outcome is the model's."""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.labs.domain import Guest
from tests.recovery.calls import Call, Caller, Refused, snapshot_name
from tests.recovery.daemon import Daemon
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import names, stray
from tests.recovery.strands import HEAD, MIB, Modelled, Strand, Write, with_name
from tests.soaking import SOAK, count, draw

STRANDS, CALLS = 40, 200
ROUNDS = count(3, soak=20)


class Run:
    """One round: the strands, what was answered, what the test wrote itself."""

    def __init__(self, daemon: Daemon, strands: list[Strand]) -> None:
        self.daemon = daemon
        self.strands = strands
        self.answered = 0
        self.written: set[tuple[int, int]] = set()
        self.attached: dict[str, str] = {}
        self._lock = threading.Lock()

    def go(self, *, last: bool) -> None:
        """Make every call, a strand after the other call by call; a strand ends where the daemon is gone."""
        with self.daemon.caller(retries=last) as caller, ThreadPoolExecutor(len(self.strands)) as threads:
            list(threads.map(lambda number: self._strand(caller, number, last=last), range(len(self.strands))))

    def _strand(self, caller: Caller, number: int, *, last: bool) -> None:
        for position, step in enumerate(self.strands[number].steps):
            if isinstance(step, Write):
                self._write(step, (number, position))
                continue
            try:
                self._call(caller, step)
            except Refused as error:
                if last or error.code not in ("UNAVAILABLE", "CANCELLED", "UNKNOWN"):
                    running = caller.list_operations(unfinished=True)
                    raise AssertionError(f"{step}: {error}; unfinished: {running}; log: {self._log(step)}") from error
                return

    def _log(self, step: Call) -> str:
        """What the daemon said of this volume lately."""
        name = next(part for part in str(step.fields).split("'") if re.fullmatch(r"(.*/)?s\d{3}-\d.*", part)).split("/")[-1]
        return "\n".join(line for line in self.daemon.log.read_text().splitlines() if name in line or '"error"' in line)[-4000:]

    def _call(self, caller: Caller, call: Call) -> None:
        if call.verb == "detach":
            call = with_name(call, self.attached[call.fields["name"].removeprefix("of ")])
        answer = caller(call)
        if call.verb == "attach":
            self.attached[answer.attachment.volume.rpartition("/")[2]] = answer.attachment.name
        with self._lock:
            self.answered += 1

    def _write(self, step: Write, key: tuple[int, int]) -> None:
        """Once only, and again while the gateway merges layers of this volume."""
        deadline = time.monotonic() + 30
        while key not in self.written:
            try:
                write_pattern(self.daemon, step.volume, step.pattern, length=HEAD)
            except subprocess.CalledProcessError as error:
                assert b"lock" in error.stderr, error.stderr
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                self.written.add(key)


def _drawn(generator: random.Random, images: dict[int, Path], domain: str) -> list[Strand]:
    strands = [Strand(number, generator, images, domain) for number in range(STRANDS)]
    for strand in strands:
        strand.draw(CALLS // STRANDS)
    return strands


def _resumed(daemon: Daemon) -> int:
    """How many operations the last start took up: those that the kill hit."""
    return int(re.findall(r'"resumed": (\d+)', daemon.log.read_text())[-1])


def _compare(daemon: Daemon, strands: list[Strand]) -> None:
    model: dict[str, Modelled] = {name: found for strand in strands for name, found in strand.volumes.items()}
    with daemon.caller() as caller:
        caller.settle()
        assert stray(daemon.pool, daemon.state / "spool") == []
        assert names(daemon.pool) == sorted(model)
        listed = caller.list_volumes()
        assert {name: (row.size_bytes, dict(row.labels), row.format) for name, row in listed.items()} == {
            name: (found.size, found.labels, found.format) for name, found in model.items()
        }
        held = {row.volume.rpartition("/")[2] for row in caller.list_attachments()}
        assert held == {name for name, found in model.items() if found.attached}
        for name, found in model.items():
            assert {cut: row.size_bytes for cut, row in caller.list_snapshots(name).items()} == {
                cut: size for cut, (size, _) in found.snapshots.items()
            }
            for cut, (size, pattern) in found.snapshots.items():
                assert caller.content(snapshot_name(name, cut)) == _content(size, pattern), f"{name}/{cut}"
            if not found.attached:
                assert caller.content(name) == _content(found.size, found.pattern), name


def _content(size: int, pattern: int) -> bytes:
    return bytes([pattern]) * HEAD + bytes(size - HEAD)


@pytest.mark.timeout(3600 if SOAK else 180)
def test_calls_that_a_kill_interrupts_come_to_what_the_model_says(base: Path, guest: Guest):
    generator = draw()
    hit = 0
    for round_ in range(ROUNDS):
        folder = base / f"r{round_}"
        folder.mkdir()
        folder.chmod(0o711)
        daemon = Daemon(folder, uri=guest.libvirtd.uri)
        images = {pattern: _image(daemon.images, pattern) for pattern in (3, 7)}
        strands = _drawn(generator, images, guest.name)
        moment, delay = generator.randrange(5, CALLS - 10), generator.random() * 0.03
        with daemon:
            run = Run(daemon, strands)
            runner = threading.Thread(target=run.go, kwargs={"last": False})
            runner.start()
            while run.answered < moment and runner.is_alive():
                time.sleep(0.001)
            time.sleep(delay)
            daemon.kill9()
            runner.join(60)
            daemon.start()
            resumed = _resumed(daemon)
            hit += resumed > 0
            print(f"round {round_}: killed after {run.answered} of {CALLS} answers, {resumed} operations in flight")
            run.go(last=True)
            _compare(daemon, strands)
            seen = {disk.serial for disk in guest.disks()}
            with daemon.caller() as caller:
                assert seen == {row.options.serial for row in caller.list_attachments()}
            guest.detach_all(60)
    print(f"kills that hit an operation: {hit} of {ROUNDS}")
    assert hit * 2 >= ROUNDS


def _image(folder: Path, pattern: int) -> Path:
    path = make_image(folder / f"{pattern}.qcow2", HEAD, pattern)
    subprocess.run(["qemu-img", "resize", "-q", str(path), str(MIB)], check=True, timeout=30)
    return path
