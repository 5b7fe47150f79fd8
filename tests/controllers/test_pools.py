"""Controllers that serve different pools of one gateway: each leaves alone what is the other's."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.controllers.fleet import Fleet, until
from tests.controllers.test_two import MIB, create, fresh, imported
from tests.recovery.calls import Call, Refused
from tests.recovery.halting import Halting
from volgate.v1 import volume_pb2

Q = "pools/q"


def on_q(name: str) -> Call:
    return Call("create", {"pool": Q, "volume_id": name, "size_bytes": MIB, "request_id": fresh("r")})


def listed(caller) -> set[str]:
    found = caller.volumes.ListVolumes(volume_pb2.ListVolumesRequest(page_size=500), timeout=30).volumes
    return {volume.name for volume in found}


@pytest.fixture
def uneven(fleet: Fleet) -> Fleet:
    """The first member serves one more pool."""
    config = fleet.member(1).config
    config.write_text(config.read_text() + f'[pools.q]\nkind = "directory"\npath = "{fleet.base}/q"\n')
    return fleet


def test_a_pool_of_one_is_listed_by_all_and_served_by_that_one(uneven):
    with uneven.call(1) as one:
        one(on_q("a"))
        with uneven.call(2) as two:
            two(create("b"))
            wanted = {f"{Q}/volumes/a", "pools/p/volumes/b"}
            assert listed(one) == listed(two) == wanted
            with pytest.raises(Refused) as refused:
                two.once(on_q("c"))
            assert refused.value.code == "NOT_FOUND"
            os.kill(uneven.member(2).pid, signal.SIGHUP)
            until(lambda: "configuration reloaded" in uneven.member(2).tail(), "the reload")
            assert listed(one) == wanted, "what is not served here is not gone"


def test_a_pool_that_nobody_serves_any_more_is_forgotten(uneven):
    config = uneven.member(1).config
    with uneven.call(1) as one, uneven.call(2) as two:
        one(on_q("a"))
        config.write_text(config.read_text().partition("[pools.q]")[0])
        os.kill(uneven.member(1).pid, signal.SIGHUP)
        until(lambda: listed(two) == set(), "the end of its rows")
        assert uneven.rows("SELECT pools FROM controller WHERE name = 'c1'") == [("p",)]


def test_what_a_dead_one_was_at_in_its_own_pool_waits_for_it(uneven):
    call = imported(uneven, "a")
    call.fields["pool"] = Q
    with uneven.call(1, retries=False) as one, uneven.call(2) as two, ThreadPoolExecutor(1) as threads:
        with Halting(uneven[1], "qemu-img convert") as halting:
            threads.submit(one.once, call)
            halting.caught()
            uneven.member(1).kill9()
        until(lambda: "c1" not in uneven.controllers(), "its burial")
        two(create("b"))
        assert uneven.rows("SELECT claim, state FROM operation WHERE method = 'ImportVolume'") == [(1, "queued")]
        uneven.member(1).start()
        with uneven.call(1) as again:
            assert again(call).volume.name == f"{Q}/volumes/a"
        assert uneven.rows("SELECT claim, state FROM operation WHERE method = 'ImportVolume'") == [(2, "done")]


@pytest.fixture
def bound(fleet: Fleet) -> Fleet:
    """Both members have a pool whose storage is of one machine; there is no such volume group here, so that it is down where it is served."""
    for member in (1, 2):
        config = fleet.member(member).config
        config.write_text(config.read_text() + '[pools.q]\nkind = "lvm"\nvg = "nowhere"\nthin_pool = "pool"\n')
    return fleet


def refusal(caller, call: Call) -> str:
    with pytest.raises(Refused) as refused:
        caller.once(call)
    return refused.value.reason


def test_a_pool_of_another_machine_is_left_to_it_until_that_gives_it_up(bound):
    with bound.call(1, retries=False) as one, bound.call(2, retries=False) as two:
        machine = Path("/etc/machine-id").read_text().strip()
        assert bound.rows("SELECT value FROM meta WHERE key = 'home/q'")[0][0].split(" ")[0] == machine
        assert refusal(one, on_q("a")) == refusal(two, on_q("a")) == "POOL_DOWN", "both are on the machine that has it"
        bound.rows("UPDATE meta SET value = 'ffffffffffffffffffffffffffffffff far' WHERE key = 'home/q' RETURNING key")
        until(lambda: refusal(two, on_q("b")) == "POOL_ELSEWHERE", "its standing aside")
        until(lambda: bound.rows("SELECT pools FROM controller WHERE name = 'c2'") == [("p",)], "its word of that")
        two(create("c"))
        bound.rows("DELETE FROM meta WHERE key = 'home/q' RETURNING key")
        until(lambda: refusal(two, on_q("d")) == "POOL_DOWN", "its turn")
