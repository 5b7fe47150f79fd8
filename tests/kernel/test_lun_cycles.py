"""Volumes are attached and detached at once while ways, targets and the gateway die: nothing stays, and nobody gets another's."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.kernel.attached import DOMAIN, SCSI, Gateway, cut, left, map_of, mend, ways
from tests.kernel.san import LIO, eventually
from tests.kernel.test_attached_lun import once
from tests.kernel.test_iscsi import direct
from tests.soaking import SOAK, count, draw
from volgate_client import Client
from volgate_client.errors import VolgateError

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(3600 if SOAK else 1500)]
T = TypeVar("T")
SIZE = 32 << 20
PAGE = 4096
CYCLES, PORTIONS = count(10, soak=20), count(1, soak=10)
"""Each portion is told when it ended, has the gateway killed in its middle, and begins with another."""
AT_ONCE = 8
CALL_SECONDS = 180.0
"""What each call is given: within it comes a clear answer."""
CYCLE_SECONDS = 600.0
LONG_SECONDS = count(20, soak=60)
"""How long they are gone, now and then."""
LONG_SHARE = 0.12
CLEAR = ("UNAVAILABLE", "ABORTED")
"""Nothing was changed; or the outcome is not known yet. Both say: repeat the call."""


class Cycles:
    """Volumes that are attached and detached at once, while what they need dies and comes back."""

    def __init__(self, gateway: Gateway) -> None:
        """Volumes, each with a content of its own."""
        self.gateway = gateway
        self.volumes = [gateway.volume(f"cycle{number}", SIZE) for number in range(AT_ONCE)]
        self.numbers, self.lock = iter(range(CYCLES)), threading.Lock()
        self.done, self.answers, self.ended = 0, Counter[str](), False
        for volume in self.volumes:
            with content_of(volume).open("r+b") as file:
                file.write(self.mark(volume))

    @staticmethod
    def mark(volume: str) -> bytes:
        """What the first page of a volume holds."""
        return volume.encode().ljust(PAGE, b"\0")

    def work(self, volume: str) -> None:
        """One volume, again and again."""
        with Client(self.gateway.server.address, timeout=CALL_SECONDS, retrying=once) as client:
            while True:
                with self.lock:
                    if next(self.numbers, None) is None:
                        return
                self.cycle(client, volume)
                with self.lock:
                    self.done += 1

    def cycle(self, client: Client, volume: str) -> None:
        """Attach, read what was attached, detach."""
        attachment = self.repeated("attach", lambda: client.attach_volume(volume, DOMAIN, options=SCSI))
        assert direct(self.repeated("paths", lambda: map_of(client, attachment.name))) == self.mark(volume)
        while self.repeated("detach", lambda: client.detach_volume(attachment.name, wait_seconds=60)) is not None:
            self.answers["detach: pending"] += 1

    def repeated(self, what: str, call: Callable[[], T]) -> T:
        """Make a call, again where its answer says that it may be repeated."""
        until = time.monotonic() + CYCLE_SECONDS
        while True:
            began = time.monotonic()
            try:
                found = call()
            except VolgateError as error:
                took = time.monotonic() - began
                if error.reason != error.code:  # not while the gateway is dead
                    print(f"{what}: {error.code} {error.reason} after {took:.1f} s", flush=True)
                assert error.code in CLEAR, f"{what}: {error.code} {error.reason} after {took:.1f} s: {error.message}"
                assert time.monotonic() < until and not self.ended, f"{what} does not converge: {error.message}"
                with self.lock:
                    self.answers[f"{what}: {error.code} {error.reason}"] += 1
                time.sleep(error.retry_after or 0.5)
            else:
                with self.lock:
                    self.answers[f"{what}: done"] += 1
                return found

    def disturb(self, chance: random.Random, running: Callable[[], bool]) -> None:
        """Cut one way, or both, or end the targets, for a while; now and then kill the gateway meanwhile."""
        kills = [CYCLES // 2]
        while running():
            assert self.gateway.server.alive, "the gateway ended by itself"
            undo = chance.choice((lambda: lose(1), lambda: lose(2), lambda: lose(1, 2), lambda: lose(1, 2), stop_targets))()
            long = chance.random() < LONG_SHARE
            wait(LONG_SECONDS if long else chance.uniform(0.5, 5.0), running)
            killed = bool(kills) and self.done >= kills[0]
            if killed:
                self.gateway.server.kill9()
            undo()
            if killed:
                kills.pop(0)
                self.gateway.start()
            wait(chance.uniform(4.0, 12.0), running)


def wait(seconds: float, running: Callable[[], bool]) -> None:
    """Sleep, while it runs."""
    until = time.monotonic() + seconds
    while running() and time.monotonic() < until:
        time.sleep(0.2)


def lose(*numbers: int) -> Callable[[], None]:
    """Cut ways; return what mends them."""
    for number in numbers:
        cut(number)

    def undo() -> None:
        for number in numbers:
            mend(number)

    return undo


def stop_targets() -> Callable[[], None]:
    """Throw everybody out of each target that is there; return what lets them in again."""
    enabled = list(LIO.glob("iscsi/iqn*/tpgt_1/enable"))

    def switch(value: str) -> None:
        for file in enabled:
            with contextlib.suppress(OSError):  # it was taken away, or is as wished
                file.write_text(value)

    switch("0")
    return lambda: switch("1")


def content_of(volume: str) -> Path:
    """The file that a volume's bytes are in."""
    name = volume.rpartition("/")[2]
    found = [path for path in Path("/srv/pool").rglob("*") if path.is_file() and f"/{name}." in str(path) and path.stat().st_size == SIZE]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def network() -> None:
    ways()


@pytest.fixture
def gateway(network: None) -> Iterator[Gateway]:
    gateway = Gateway().start()
    yield gateway
    gateway.stop()


@pytest.mark.parametrize("portion", range(PORTIONS))
def test_cycles_while_ways_targets_and_the_gateway_die_leave_nothing_and_never_hand_over_another_volume(
    gateway: Gateway, portion: int
) -> None:
    cycles, chance, began = Cycles(gateway), draw(), time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        works = [threads.submit(cycles.work, volume) for volume in cycles.volumes]
        try:
            cycles.disturb(chance, lambda: not all(work.done() for work in works))
        finally:
            cycles.ended = True
        for work in works:
            work.result()
    answers = dict(sorted(cycles.answers.items()))
    print(f"portion {portion + 1} of {PORTIONS}: {cycles.done} cycles in {time.monotonic() - began:.0f} s: {answers}")
    assert cycles.done == CYCLES
    eventually(lambda: left() == [], 120)
    with gateway.server.client() as client:
        for volume in cycles.volumes:
            client.delete_volume(volume)
