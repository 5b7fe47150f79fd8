"""A Ceph cluster that fails in the middle of calls: each call answers by its deadline, says what is known, and all converges."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import rbd

from tests.labs.ceph import CephCluster
from tests.plugins.ceph_rig import OURS
from tests.soaking import SOAK, draw
from volgate.conformance.in_process import Opened
from volgate.conformance.verbs import VERBS, Call, Verb
from volgate.errors import InDoubt, Unreachable, VolgateError
from volgate.model import Health
from volgate_plugins.ceph_rbd import volgate_backends
from volgate_plugins.ceph_rbd.backend import CephRbd

OPERATION_SECONDS = 2.0
ANSWER_SECONDS = 90.0  # a call is some ten requests, and closing an image may take three times as long as one
CONVERGE_SECONDS = 120.0
MOST_DELAY = 0.06


@dataclass(frozen=True)
class Trouble:
    """What happens to a daemon, and what ends it."""

    name: str
    daemon: str
    begin: Callable[[CephCluster], None]
    end: Callable[[CephCluster], None]

    def __str__(self) -> str:
        return self.name


def _restart(cluster: CephCluster, daemon: str) -> None:
    cluster.kill(daemon)
    cluster.restart(daemon, wait=False)


TROUBLES = [
    Trouble(f"{daemon[:3]}-{name}", daemon, begin, end)
    for daemon in ("osd.0", "mon.a")
    for name, begin, end in (
        ("frozen", lambda c, d=daemon: c.freeze(d), lambda c, d=daemon: c.thaw(d)),
        ("killed", lambda c, d=daemon: c.kill(d), lambda c, d=daemon: c.restart(d, wait=False)),
        ("restarted", lambda c, d=daemon: _restart(c, d), lambda _c: None),
    )
]
TRIED = [verb for verb in VERBS if all(issubclass(CephRbd, need) if isinstance(need, type) else True for need in verb.needs)]
TRIED = [verb for verb in TRIED if not verb.name.endswith("overlay") and verb.name != "collapse"]


def _cases() -> list[tuple[Trouble, Verb]]:
    """Every verb with every trouble in a soak; else each trouble with two verbs of its own."""
    every = list(itertools.product(TROUBLES, TRIED))
    if SOAK:
        return every
    return [(trouble, TRIED[(start + step) % len(TRIED)]) for start, trouble in enumerate(TROUBLES) for step in (0, len(TROUBLES))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[CephCluster]:
    with CephCluster(store="bluestore") as running:
        yield running


@pytest.fixture
def pool(cluster: CephCluster) -> Iterator[Opened]:
    namespace = cluster.new_namespace()
    table = cluster.table(namespace=namespace, operation_seconds=OPERATION_SECONDS, connect_seconds=OPERATION_SECONDS)

    def litter() -> list[str]:
        deadline = time.monotonic() + CONVERGE_SECONDS
        while (left := _left(cluster, namespace)) and time.monotonic() < deadline:
            opened.backend.check()  # as the gateway does now and then: it wakes the purge
            time.sleep(0.2)
        return left

    opened = Opened(volgate_backends()[0], table, draw().randrange(1 << 30), litter)
    yield opened
    opened.clear()
    opened.backend.close()


def _left(cluster: CephCluster, namespace: str) -> list[str]:
    with cluster.ioctx(namespace) as ioctx:
        rows = [key for key in cluster.rows(ioctx, "volgate.pool") if not key.startswith(OURS)]
        trash = [entry["name"] for entry in rbd.RBD().trash_list(ioctx)]
        kept = [one.key for one in ioctx.list_objects() if one.key.startswith(("rbd_header.", "rbd_object_map.", "rbd_id."))]
        return [*rbd.RBD().list(ioctx), *trash, *rows, *kept]


def _made(pool: Opened, call: Call) -> Any:
    return getattr(pool.backend, call.method)(*call.arguments, **call.keywords)


def _in_trouble(pool: Opened, call: Call, cluster: CephCluster, trouble: Trouble, delay: float) -> VolgateError | None:
    """Make the call while the trouble comes; return its refusal."""
    told: list[VolgateError | BaseException | None] = []

    def run() -> None:
        try:
            _made(pool, call)
            told.append(None)
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(delay)
    trouble.begin(cluster)
    began = time.monotonic()
    thread.join(ANSWER_SECONDS)
    print(f"answered after {time.monotonic() - began:.1f} s: {told}")
    assert told, f"{call.method} has not answered after {ANSWER_SECONDS:.0f} s"
    assert told[0] is None or isinstance(told[0], VolgateError), told[0]
    return told[0]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("trouble", "verb"), _cases(), ids=str)
def test_a_call_in_trouble_answers_in_time_and_its_repeat_ends_it(cluster: CephCluster, pool: Opened, trouble: Trouble, verb: Verb):
    call, chosen = verb.prepare(pool), random.Random(pool.random.random())
    try:
        refusal = _in_trouble(pool, call, cluster, trouble, chosen.uniform(0, MOST_DELAY))
    finally:
        trouble.end(cluster)
    assert refusal is None or isinstance(refusal, Unreachable | InDoubt), f"{refusal!r}: {refusal.message}"
    _until_done(pool, call)
    cluster.wait_ready()
    pool.reopen()
    call.check(pool)
    pool.clear()
    pool.nothing_is_left()


def _until_done(pool: Opened, call: Call) -> None:
    """Repeat the call, as its operation does."""
    deadline = time.monotonic() + CONVERGE_SECONDS
    while True:
        try:
            _made(pool, call)
            return
        except (Unreachable, InDoubt) as error:
            assert time.monotonic() < deadline, error.message
            time.sleep(0.2)


def test_reads_and_checks_of_a_cluster_that_hangs_say_so_in_time_and_change_nothing(cluster: CephCluster, pool: Opened):
    made = pool.create()
    cluster.freeze("osd.0")
    try:
        for call in (lambda: pool.get(made), pool.listed, lambda: pool.backend.connection(pool.id(made), host="h")):
            began = time.monotonic()
            with pytest.raises(Unreachable):
                call()
            assert time.monotonic() - began < ANSWER_SECONDS
        with pytest.raises(Unreachable, match="nothing was changed"):
            pool.create()
        found = pool.backend.check()
        assert found.health is Health.DOWN and "no answer" in found.message
    finally:
        cluster.thaw("osd.0")
    cluster.wait_ready()
    deadline = time.monotonic() + CONVERGE_SECONDS
    while pool.backend.check().health is not Health.OK:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert pool.get(made) == made
