"""A real gateway on a cluster that fails in the middle of calls: the gateway's own answer, the truth about it, and no litter."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.edge.wire import Refusal, refusal
from tests.labs.ceph import CephCluster
from tests.plugins.ceph_deeds import ANSWER_SECONDS, DEEDS, Deed, Place, Sent
from tests.plugins.ceph_rig import MIB, until
from tests.plugins.ceph_trouble import TROUBLES, Trouble
from tests.soaking import SOAK, draw
from volgate.v1 import pool_pb2

MOST_DELAY = 0.04  # most calls take some 20 ms
NEAR_SECONDS = 15.0  # a pool that has no trouble answers at once, on a machine that is busy
CONVERGE_SECONDS = 150.0
READY_SECONDS = 40.0
DRAWN = 4
ANSWERS = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")
"""Of the gateway: nothing was changed; in doubt; still running. All with a reason, which gRPC's own end of a call has not."""


EVERY = list(itertools.product(TROUBLES, DEEDS))
CASES = EVERY if SOAK else [None] * DRAWN
"""Every call with every trouble in a soak; else a few that each test draws: who collects them does not know which."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[CephCluster]:
    with CephCluster(store="bluestore") as running:
        yield running


@pytest.fixture(scope="module")
def place(cluster: CephCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(cluster, Path(tmp_path_factory.mktemp("troubles")), operation_seconds=2.0, connect_seconds=2.0)
    yield made
    made.close()
    assert "Traceback" not in made.server.log.read_text()


def in_trouble(place: Place, sent: Sent, trouble: Trouble, delay: float) -> Refusal | None:
    """Make the call while the trouble comes, and use another pool meanwhile; return the refusal."""
    told: list[Refusal | None] = []

    def run() -> None:
        try:
            sent.call()
            told.append(None)
        except grpc.RpcError as error:
            told.append(refusal(error))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(delay)
    trouble.begin(place.cluster)
    began = time.monotonic()
    made = place.client.create_volume("pools/near", "n", size_bytes=MIB)
    place.client.delete_volume(made.name)
    assert time.monotonic() - began < NEAR_SECONDS, "another pool waits for the one in trouble"
    thread.join(ANSWER_SECONDS + 30)
    print(f"answered {time.monotonic() - began:.1f} s later: {told}")
    assert told, "the call was not answered"
    return told[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}" if case else "drawn")
def test_a_call_in_trouble_has_the_gateways_answer_and_its_repeat_ends_it(place: Place, case: tuple[Trouble, Deed] | None) -> None:
    chosen = draw()
    trouble, deed = case or chosen.choice(EVERY)
    print(f"{deed} with {trouble}")
    until(lambda: place.client.get_pool("pools/rbd").health == pool_pb2.POOL_HEALTH_OK)
    sent = deed.prepare(place)
    try:
        told = in_trouble(place, sent, trouble, chosen.uniform(0, MOST_DELAY))
    finally:
        trouble.end(place.cluster)
    mend(place.cluster, trouble)
    if told is not None:
        assert told.code in ANSWERS and told.reason, f"{told.code} {told.reason}: {told.message}"
        if told.code == "UNAVAILABLE":
            sent.unchanged()
        repeated(sent)
    sent.check()
    place.empty()
    until(lambda: not place.left(), CONVERGE_SECONDS, place.left)


def mend(cluster: CephCluster, trouble: Trouble) -> None:
    """Wait until the cluster takes writes. An OSD of 16.2 that was stopped may keep its requests for minutes; it is then restarted."""
    try:
        cluster.wait_ready(READY_SECONDS)
    except AssertionError as error:
        print(f"{trouble.daemon} is restarted: {str(error)[:200]}")
        cluster.restart(trouble.daemon)


def repeated(sent: Sent) -> None:
    """Repeat the call until it is done, as a caller does."""
    deadline = time.monotonic() + CONVERGE_SECONDS
    while True:
        try:
            sent.call()
            return
        except grpc.RpcError as error:
            told = refusal(error)
            assert told.code in ANSWERS and told.reason and time.monotonic() < deadline, f"{told.code} {told.reason}: {told.message}"
            time.sleep(0.2)
