"""A LUN by two portals as the disk of a domain, through a real gateway, libvirt and QEMU in the kernel lab."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.attached import DOMAIN, SCSI, WAYS, Gateway, cut, held, left, map_of, mend, qemu_writes, ways
from tests.kernel.san import eventually
from volgate.connect.multipath import Multipathd
from volgate.connect.scsi import size_of
from volgate.v1 import attachment_pb2
from volgate_client import Client
from volgate_client.errors import NotFound, Unavailable, VolgateError

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(600)]
MIB = 1 << 20
SIZE = 32 * MIB
PAGE = 4096
TAIL = SIZE - 65536
"""What QEMU itself writes to; all before it is the writer's."""
REDUNDANT, DEGRADED, DOWN = attachment_pb2.REDUNDANCY_REDUNDANT, attachment_pb2.REDUNDANCY_DEGRADED, attachment_pb2.REDUNDANCY_DOWN
FAILED = attachment_pb2.PATH_STATE_FAILED


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    ways()
    gateway = Gateway().start()
    yield gateway
    gateway.stop()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    """A client; what a test leaves is its failure."""
    with gateway.server.client(timeout=120.0) as client:
        yield client
    assert left() == []


class Writer(threading.Thread):
    """Writes pages past the cache, one after the other, as a guest would; each says which it is."""

    def __init__(self, path: str) -> None:
        """`start()` begins."""
        super().__init__(daemon=True)
        self.path, self.done, self.problem = path, 0, ""
        self._ended = threading.Event()

    def run(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        try:
            with mmap.mmap(-1, PAGE) as page:
                while not self._ended.is_set():
                    page[:8] = self.done.to_bytes(8, "big")
                    os.pwrite(descriptor, page, self.done % (TAIL // PAGE) * PAGE)
                    self.done += 1
                    time.sleep(0.02)
        except OSError as error:
            self.problem = str(error)
        finally:
            os.close(descriptor)

    def end(self) -> int:
        """Stop; return how many pages were written."""
        self._ended.set()
        self.join(60)
        assert not self.is_alive() and not self.problem
        return self.done


def redundancy(client: Client, name: str) -> int:
    return client.list_paths(name).redundancy


def iscsi(client: Client, name: str) -> dict[str, attachment_pb2.Path]:
    """The ways of an attachment by the address of their portal."""
    found = [path for path in client.list_paths(name).paths if path.transport == "iscsi"]
    return {address: path for address in WAYS for path in found if f"at {address}:" in path.target}


def test_a_lun_by_two_portals_survives_the_loss_of_one_and_waits_without_both(gateway: Gateway, client: Client) -> None:
    volume = gateway.volume("a", SIZE)
    attachment = client.attach_volume(volume, DOMAIN, options=SCSI)
    assert redundancy(client, attachment.name) == REDUNDANT
    told = iscsi(client, attachment.name)
    assert len(told) == 2
    for number, address in enumerate(WAYS, 1):
        facts = told[address].facts
        assert told[address].initiator == "iqn.2026-01.org.volgate:host" and facts["interface"] == f"way{number}" and facts["lun"] == "1"
        assert facts["dm"] == "active" and facts["checker"] == "ready" and facts["alua"] == "active/optimized" and float(facts["since"]) > 0
        assert int(facts["priority"]) > 0 and told[address].device.startswith("/dev/sd")
    device = map_of(client, attachment.name)
    require_qemu_writes(attachment, device, 171)
    watcher = Watcher(gateway, attachment.name)
    watcher.start()
    writer = Writer(device)
    writer.start()
    cut(2)
    eventually(lambda: redundancy(client, attachment.name) == DEGRADED, 120)
    eventually(lambda: watcher.seen[-1:] == [DEGRADED], 60)
    lost = iscsi(client, attachment.name)
    assert lost[WAYS[1]].state == FAILED and WAYS[1] in lost[WAYS[1]].last_error and lost[WAYS[0]].state != FAILED
    before = writer.done
    eventually(lambda: writer.done > before + 5, 120)
    require_qemu_writes(attachment, device, 172)
    cut(1)
    eventually(lambda: redundancy(client, attachment.name) == DOWN, 120)
    eventually(lambda: watcher.seen[-1:] == [DOWN], 60)
    before = writer.done
    time.sleep(3)
    assert writer.done <= before + 1 and writer.is_alive() and not writer.problem, "it waits"
    for number in (1, 2):
        mend(number)
    eventually(lambda: redundancy(client, attachment.name) == REDUNDANT, 120)
    eventually(lambda: watcher.seen[-1:] == [REDUNDANT], 60)
    eventually(lambda: writer.done > before + 5, 120)
    assert_written(device, writer.end())
    require_qemu_writes(attachment, device, 173)
    assert client.detach_volume(attachment.name, wait_seconds=60) is None
    assert watcher.ended() == [REDUNDANT, DEGRADED, DOWN, REDUNDANT]
    client.delete_volume(volume)


class Moments(threading.Thread):
    """When multipathd knew of how many usable ways, on this machine's clock: it is asked all the time."""

    def __init__(self, wwid: str) -> None:
        """`start()` begins."""
        super().__init__(daemon=True)
        self.wwid, self.known, self._ended = wwid, dict[int, float](), threading.Event()

    def run(self) -> None:
        multipathd, before = Multipathd(), -1
        while not self._ended.is_set():
            if (found := multipathd.find(self.wwid, time.monotonic() + 60)) is not None:
                usable = sum(way.usable for way in found.ways)
                if usable != before:
                    before, self.known[usable] = usable, time.monotonic()
            time.sleep(0.05)

    def end(self) -> dict[int, float]:
        """By the number of ways, when it was so first after it had been otherwise."""
        self._ended.set()
        self.join(120)
        assert not self.is_alive()
        return self.known


def test_a_watch_tells_soon_what_multipathd_knows(gateway: Gateway, client: Client) -> None:
    """How soon is printed; that it is within two seconds where a look takes less than one is proven in tests/unit/test_path_watches.py."""
    volume = gateway.volume("d", SIZE)
    attachment = client.attach_volume(volume, DOMAIN, options=SCSI)
    wwid = next(path.target for path in client.list_paths(attachment.name).paths if path.transport == "multipath")
    watcher, moments = Watcher(gateway, attachment.name), Moments(wwid)
    watcher.start()
    moments.start()
    eventually(lambda: watcher.seen[-1:] == [REDUNDANT] and 2 in moments.known, 120)
    began = time.monotonic()
    client.list_paths(attachment.name)
    look = time.monotonic() - began
    cut(2)
    eventually(lambda: watcher.seen[-1:] == [DEGRADED] and 1 in moments.known, 240)  # the kernel's session may tell it first
    back = time.monotonic()
    mend(2)
    eventually(lambda: watcher.seen[-1:] == [REDUNDANT] and moments.known[2] > back, 240)
    known = moments.end()
    for ways_left, redundancy_told, what in ((1, DEGRADED, "failed"), (2, REDUNDANT, "came back")):
        late = watcher.at[redundancy_told] - known[ways_left]
        print(f"a path {what}: the stream told it {late:.2f} s after multipathd; a look takes {look:.2f} s here")
        assert late < 60
    assert client.detach_volume(attachment.name, wait_seconds=60) is None
    watcher.join(60)
    client.delete_volume(volume)


class Watcher(threading.Thread):
    """Follows the paths of an attachment until it is gone; `ended` tells what they came to, one after the other."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        """`start()` begins."""
        super().__init__(daemon=True)
        self.gateway, self.name_of, self.seen, self.at = gateway, name, list[int](), dict[int, float]()

    def run(self) -> None:
        with self.gateway.server.client(timeout=120.0) as client, contextlib.suppress(NotFound):
            for answer in client.watch_paths(self.name_of):
                if self.seen[-1:] != [answer.redundancy]:
                    self.at[answer.redundancy] = time.monotonic()
                self.seen.append(answer.redundancy)

    def ended(self) -> list[int]:
        """What was told, each state once where it was told again and again; some lie between DOWN and REDUNDANT."""
        self.join(60)
        assert not self.is_alive(), "the watch ends with the attachment"
        changes = [key for key, _ in itertools.groupby(self.seen)]
        down = changes.index(DOWN) + 1
        return [*changes[:down], REDUNDANT] if REDUNDANT in changes[down:] else changes


def require_qemu_writes(attachment: attachment_pb2.Attachment, device: str, value: int) -> None:
    qemu_writes(attachment.alias, value, TAIL, 65536)
    assert held(device, TAIL, 65536) == bytes([value]) * 65536


def assert_written(device: str, count: int) -> None:
    """Every page holds the last number that was written there."""
    pages = TAIL // PAGE
    with Path(device).open("rb") as disk:
        for page in range(min(count, pages)):
            disk.seek(page * PAGE)
            last = count - 1 - (count - 1 - page) % pages
            assert int.from_bytes(disk.read(8), "big") == last


def test_expansion_reaches_qemu(gateway: Gateway, client: Client) -> None:
    volume = gateway.volume("b", SIZE)
    attachment = client.attach_volume(volume, DOMAIN, options=SCSI)
    assert client.expand_volume(volume, 2 * SIZE).size_bytes == 2 * SIZE
    device = map_of(client, attachment.name)
    assert size_of(device.removeprefix("/dev/")) == 2 * SIZE
    qemu_writes(attachment.alias, 7, 2 * SIZE - PAGE, PAGE)
    assert held(device, 2 * SIZE - PAGE, PAGE) == bytes([7]) * PAGE
    assert client.detach_volume(attachment.name, wait_seconds=60) is None
    client.delete_volume(volume)


def test_an_attach_that_reaches_no_portal_leaves_nothing(gateway: Gateway, client: Client) -> None:
    volume = gateway.volume("c", SIZE)
    for number in (1, 2):
        cut(number)
    try:
        with Client(gateway.server.address, timeout=120.0, retrying=once) as hasty, pytest.raises(Unavailable) as refused:
            hasty.attach_volume(volume, DOMAIN, options=SCSI)
        assert refused.value.reason == "ISCSI_UNREACHABLE"
    finally:
        for number in (1, 2):
            mend(number)
    assert left() == []
    client.delete_volume(volume)


def once(failure: VolgateError) -> None:
    """Let a client not try again."""
    raise failure
