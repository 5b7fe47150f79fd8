"""A Ceph cluster that fails in the middle of calls: each call answers by its deadline, says what is known, and all converges."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import rbd

from tests.labs.ceph import CephCluster
from tests.plugins.ceph_rig import OURS
from tests.plugins.ceph_trouble import TROUBLES, Trouble
from tests.soaking import SOAK, draw
from volgate.conformance.in_process import Opened
from volgate.conformance.picture import PAGE
from volgate.conformance.verbs import FOREIGN, VERBS, Call, Verb
from volgate.errors import InDoubt, Unreachable, VolgateError
from volgate.model import Health
from volgate_plugins.ceph_rbd import volgate_backends
from volgate_plugins.ceph_rbd.backend import CephRbd

OPERATION_SECONDS = 2.0
ANSWER_SECONDS = 90.0  # a call is some ten requests, and closing an image may take three times as long as one
CONVERGE_SECONDS = 120.0
MOST_DELAY = 0.06


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

    def foreign(size: int) -> str:
        name = f"foreign-{uuid.uuid4().hex[:8]}"
        with cluster.ioctx(namespace) as ioctx:
            rbd.RBD().create(ioctx, name, size)
            with rbd.Image(ioctx, name) as image:
                for offset in (0, size - PAGE):
                    image.write(bytes([FOREIGN]) * PAGE, offset)
        return name

    opened = Opened(volgate_backends()[0], table, draw().randrange(1 << 30), litter)
    opened.make_foreign = foreign
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
    _no_strays(cluster, pool)
    _clear(pool)
    _nothing_is_left(pool)


def _nothing_is_left(pool: Opened) -> None:
    """Wait until it is so: what was deleted while a dead call's client held it is purged in the background."""
    deadline = time.monotonic() + CONVERGE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            return pool.nothing_is_left()
        pool.backend.check()
        time.sleep(0.5)
    return pool.nothing_is_left()


def _clear(pool: Opened) -> None:
    """Take everything away: the client of a call that was cut off holds its image for half a minute, and nothing held is deleted."""
    deadline = time.monotonic() + CONVERGE_SECONDS
    pool.clear()
    while (left := pool.listed()) and time.monotonic() < deadline:
        for volume in left:
            with contextlib.suppress(VolgateError):
                for cut in reversed(pool.snapshots(volume)):
                    pool.backend.delete_snapshot(pool.id(volume), cut.uid)
                pool.delete(volume)
        time.sleep(0.5)


def _no_strays(cluster: CephCluster, pool: Opened) -> None:
    """Wait until there are none: what a half-made clone lay on goes when that is purged, in the background."""
    deadline = time.monotonic() + CONVERGE_SECONDS
    while (found := _strays(cluster, pool)) and time.monotonic() < deadline:
        pool.backend.check()  # it wakes the purge
        time.sleep(0.2)
    assert found == []


def _strays(cluster: CephCluster, pool: Opened) -> list[str]:
    """Snapshots that images keep in a trash of their own although no clone needs them."""
    found = []
    with cluster.ioctx(str(pool.table["namespace"])) as ioctx:
        for name in rbd.RBD().list(ioctx):
            with rbd.Image(ioctx, name, read_only=True) as image:
                for one in list(image.list_snaps()):
                    if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH:
                        image.set_snap_by_id(one["id"])
                        found += [] if list(image.list_children2()) else [f"{name}: {one['name']} {one.get('trash')}"]
    return found


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


def test_a_snapshot_whose_removal_met_a_silent_monitor_is_gone_after_the_repeat(cluster: CephCluster, pool: Opened):
    made = pool.filled({0: 1})
    kept, gone = pool.snapshot(made), pool.snapshot(made)
    cluster.freeze("mon.a")
    try:
        with pytest.raises((InDoubt, Unreachable)):
            pool.backend.delete_snapshot(pool.id(made), gone.uid)
    finally:
        cluster.thaw("mon.a")
    cluster.wait_ready()
    for _ in range(2):
        pool.backend.delete_snapshot(pool.id(made), gone.uid)
    assert pool.snapshots(made) == [kept]
    with cluster.ioctx(str(pool.table["namespace"])) as ioctx, rbd.Image(ioctx, made.object, read_only=True) as image:
        assert len(list(image.list_snaps())) == 1, "nor does the image keep it in its trash"
