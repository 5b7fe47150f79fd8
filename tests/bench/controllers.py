"""CreateVolume on PostgreSQL beside SQLite: one after the other, and many at once at one controller and at two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.bench.bench import GIB, Bench
from tests.bench.measure import Pairs, Row, interleave
from tests.bench.mutations import Ours
from tests.edge.server import Server
from tests.labs.postgres import PostgresServer

AT_ONCE = 16
SHARED = """[server]
name = "{name}"
[database]
url = "{url}"
password = "file:{secret}"
[pools.default]
kind = "directory"
path = "{pool}"
"""


def controllers(bench: Bench) -> list[Row]:
    """Rows of controllers that share a database; the server syncs its commits as it does by default."""
    with contextlib.ExitStack() as stack:
        alone = Ours(bench.client())
        server = stack.enter_context(PostgresServer(durable=True))
        url = server.url(server.create())
        one, two = (Ours(stack.enter_context(_serving(bench, server, url, name)).client()) for name in ("c1", "c2"))
        pairs = interleave(bench.rounds(100), lambda n: one.create(f"pg-{n}", "raw", GIB), lambda n: alone.create(f"lite-{n}", "raw", GIB))
        single, double = Pairs(), Pairs()
        for number in bench.rounds(8):
            for sides, ours in ((single, (one,)), (double, (one, two))):
                with sides.our_turn():
                    _many(bench, ours, f"m{len(ours)}-{number}")
                with sides.their_turn():
                    _many(bench, (alone,), f"a{len(ours)}-{number}")
    return [
        *pairs.rows("create on postgresql"),
        _each(single, bench, "parallel creates at one controller"),
        _each(double, bench, "parallel creates at two controllers"),
    ]


@contextlib.contextmanager
def _serving(bench: Bench, server: PostgresServer, url: str, name: str) -> Iterator[Server]:
    config = SHARED.format(name=name, url=url, secret=server.base / "secret", pool=bench.folder / "shared-pool")
    with bench.serving(name, config) as running:
        yield running


def _many(bench: Bench, sides: tuple[Ours, ...], name: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda n: sides[n % len(sides)].create(f"{name}-{n}", "raw", GIB), range(_count(bench))))


def _count(bench: Bench) -> int:
    return bench.scaled(64, 8)


def _each(pairs: Pairs, bench: Bench, name: str) -> Row:
    """Milliseconds for each of them, by the clock on the wall: a thousand by that are the rate."""
    row = pairs.middle(name)
    assert row.reference is not None
    return Row(name, row.ours / _count(bench), row.reference / _count(bench), row.ratio)


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"controllers": controllers}
