"""A thousand connections that say nothing, or say it one byte a second, keep nobody from being served."""

import contextlib
import os
import resource
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Self

import pytest

from tests.edge.secured import Secured, secured
from tests.edge.wire import refused
from volgate.v1 import pool_pb2

MOST = 1000
HANDSHAKE = 8.0
SLOWEST = 3.0  # of a call that takes milliseconds, on a machine that others use too
POOLS = pool_pb2.ListPoolsRequest()


@pytest.fixture(scope="module")
def place() -> Iterator[Secured]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    with secured(f"handshake_seconds = {HANDSHAKE}\nconnections = 2048") as made:
        yield made
        assert made.server.stop() == 0


def greeting(place: Secured) -> bytes:
    """The first bytes of a real handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(place.pki.root))
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class Crowd:
    """Connections that drip: a byte of what is due for each, once a second, until the gateway closes them or the test ends."""

    def __init__(self, place: Secured) -> None:
        host, _, port = place.address.rpartition(":")
        self._address = host, int(port)
        self._place = place
        self._dripping: dict[socket.socket, bytearray] = {}
        self.open: set[socket.socket] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)

    def silent(self, count: int) -> None:
        """They never say a word."""
        for _ in range(count):
            self._add(socket.create_connection(self._address, timeout=10), b"")

    def dripping(self, count: int) -> None:
        """They begin a handshake, byte by byte."""
        words = greeting(self._place)
        for _ in range(count):
            self._add(socket.create_connection(self._address, timeout=10), words)

    def known(self, count: int) -> None:
        """They have a certificate, end the handshake, and say the first words of HTTP/2 byte by byte."""
        pair = self._place.pki.client("viewer", "slow")
        context = ssl.create_default_context(cafile=str(self._place.pki.root))
        context.load_cert_chain(pair.certificate, pair.key)
        context.set_alpn_protocols(["h2"])
        for _ in range(count):
            raw = socket.create_connection(self._address, timeout=10)
            self._add(context.wrap_socket(raw, server_hostname="localhost"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

    def _add(self, made: socket.socket, words: bytes) -> None:
        made.setblocking(False)
        self.open.add(made)
        if words:
            self._dripping[made] = bytearray(words)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)
        for made in self.open:
            made.close()

    def _drip(self) -> None:
        while not self._end.wait(1.0):
            for made, words in list(self._dripping.items()):
                with contextlib.suppress(OSError):
                    made.send(bytes(words[:1]))
                    del words[:1]

    def closed(self, seconds: float) -> int:
        """How many the gateway has closed, once all are or the time is over."""
        gone: set[socket.socket] = set()
        with selectors.DefaultSelector() as ready:
            for made in self.open:
                ready.register(made, selectors.EVENT_READ)
            end = time.monotonic() + seconds
            while len(gone) < len(self.open) and time.monotonic() < end:
                for key, _ in ready.select(0.2):
                    if _ended(key.fileobj):
                        ready.unregister(key.fileobj)
                        gone.add(key.fileobj)
        return len(gone)


def _ended(made) -> bool:
    try:
        while made.recv(65536):
            pass
    except (ssl.SSLWantReadError, BlockingIOError):
        return False
    except OSError:
        return True
    return True


def descriptors(place: Secured) -> int:
    assert place.server.process
    return len(os.listdir(f"/proc/{place.server.process.pid}/fd"))


def served(place: Secured, seconds: float) -> list[float]:
    """How long calls take, each over a new connection, and over one that is kept."""
    took, kept, end = [], place.by("operator", "olga"), time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        with place.connect(place.pki.client("operator", "olga")) as wire:
            assert wire.pools.ListPools(POOLS, timeout=10).pools
        assert kept.pools.ListPools(POOLS, timeout=10).pools
        took.append(time.monotonic() - began)
        time.sleep(0.1)
    return took


def test_the_gateway_opens_as_many_files_as_it_may(place):
    assert place.server.process
    soft, hard = resource.prlimit(place.server.process.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 1 << 20)


def test_a_thousand_half_open_and_slow_connections_keep_nobody_waiting(place):
    before = descriptors(place)
    with Crowd(place) as crowd:
        crowd.silent(400)
        crowd.dripping(400)
        crowd.known(200)
        assert len(crowd.open) == MOST
        assert descriptors(place) > before + MOST * 0.9, "they are held, so this is a test"
        took = served(place, 4.0)
        assert len(took) > 10
        assert max(took) < SLOWEST, sorted(took)[-5:]
        assert place.wire.pools.ListPools(POOLS, timeout=5).pools
        assert crowd.closed(HANDSHAKE + 15) == MOST, "none is held for longer than a handshake may take"
        assert max(served(place, 1.0)) < SLOWEST
        deadline = time.monotonic() + 10
        while descriptors(place) > before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert descriptors(place) <= before + 20, "nor what it cost"


def test_more_connections_than_there_may_be_are_closed_and_make_room_again():
    with secured("handshake_seconds = 4.0\nconnections = 50") as place, Crowd(place) as crowd:
        crowd.silent(80)
        with place.connect(place.pki.client("operator", "olga")) as wire:
            assert refused(wire.pools.ListPools, POOLS, timeout=1).code == "UNAVAILABLE", "there are 50 already"
        assert place.wire.pools.ListPools(POOLS, timeout=5).pools, "the unix socket has bounds of its own"
        assert crowd.closed(20) == 80
        assert served(place, 0.5)
