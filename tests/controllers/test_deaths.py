"""Controllers that die, stop, or lose the database: what was under way ends once, at another one, and its answer is known there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.controllers.fleet import LEASE, Fleet, Member, stopped, until
from tests.controllers.test_two import MIB, create, fresh, imported, label
from tests.labs.wire import Wire
from tests.recovery.calls import POOL, Call, Caller, Refused, volume_name
from tests.recovery.daemon import commands
from tests.recovery.halting import Halting
from tests.recovery.images import write_pattern
from tests.recovery.pool_files import names, stray
from tests.soaking import count, draw
from volgate.v1 import pool_pb2

LONG = 90.0
DEPTH = 15  # snapshots of a volume: a pool allows 20 layers


@pytest.fixture(scope="module")
def shared(postgres) -> Iterator[Fleet]:
    with Fleet(postgres) as fleet:
        yield fleet


def started(member: Member) -> int:
    """How often a member's gateway has begun."""
    return len(re.findall("gateway started", member.log.read_text()))


def ended_by_signal(member: Member) -> bool:
    assert member.process
    return member.process.poll() == -signal.SIGKILL


def left_over(fleet: Fleet, number: int) -> list[str]:
    """What no volume accounts for, after a check of the pool by whoever lives: it takes the work of the dead away."""
    with fleet.call(number) as caller:
        caller.pools.GetPool(pool_pb2.GetPoolRequest(name=POOL), timeout=30)
    return stray(fleet.member(number).pool)


def test_a_killed_controllers_import_is_finished_by_the_other_and_answered_there(shared):
    name = fresh()
    call = imported(shared, name)
    with shared.call(1, retries=False) as one, shared.call(2) as two, ThreadPoolExecutor(2) as threads:
        with Halting(shared[1], "qemu-img convert") as halting:
            first = threads.submit(one.once, call)
            halting.caught()
            waiting = threads.submit(two, label(name, "after"))
            until(lambda: shared.rows("SELECT count(*) FROM turn") == [(2,)], "its turn")
            shared.member(1).kill9()
        with pytest.raises(Refused):
            first.result(30)
        answer = two(call)
        assert answer.volume.size_bytes == 64 * MIB
        assert two(call).operation.name == answer.operation.name
        waiting.result(60)
        assert two.volume(name, refresh=True).labels["n"] == "after", "first come, first served, also after a death"
        assert shared.rows("SELECT count(*), max(claim) FROM operation WHERE method = 'ImportVolume'") == [(1, 2)]
    assert names(shared.member(2).pool).count(name) == 1
    until(shared.clean, "the end of all")
    assert left_over(shared, 2) == []


def test_kills_at_any_moment_lose_nothing_and_do_nothing_twice(shared):
    """Calls go to both; one controller after the other is killed meanwhile and comes back."""
    rng, wanted = draw(), [fresh("k") for _ in range(count(30, soak=500))]
    outcome: dict[str, set[str]] = {name: set() for name in wanted}
    done = threading.Event()

    def live(name: str) -> None:
        made, cut = create(name), Call("snapshot", {"volume": volume_name(name), "snapshot_id": "s", "request_id": fresh("r")})
        for call in (made, cut, label(name, "x"), made):
            answer = _somewhere(shared, rng.randrange(2), call)
            if call is made:
                outcome[name].add(answer.volume.uid)

    def kill() -> None:
        while not done.wait(rng.uniform(0.5, 2.0)):
            number = 1 + rng.randrange(2)
            shared[number].kill9()
            shared[number]

    with ThreadPoolExecutor(9) as threads:
        killer = threads.submit(kill)
        try:
            list(threads.map(live, wanted))
        finally:
            done.set()
            killer.result(60)
    assert all(len(uids) == 1 for uids in outcome.values()), "one volume for each call, whoever answered"
    until(shared.clean, "the end of all", LONG)
    with shared.call(1) as one, shared.call(2) as two:
        for caller in (one, two):
            found = caller.list_volumes()
            assert {name: found[name].uid for name in wanted} == {name: next(iter(uids)) for name, uids in outcome.items()}
            assert all(list(caller.list_snapshots(name)) == ["s"] for name in wanted)
    assert sorted(set(names(shared.member(1).pool)) & set(wanted)) == sorted(wanted)
    assert left_over(shared, 1) == []


def _somewhere(fleet: Fleet, first: int, call: Call) -> object:
    """Make a call at one member or the other until it is answered, as a client with two addresses does."""
    deadline, number = time.monotonic() + LONG, first
    while True:
        with Caller(fleet.member(1 + number % 2).address, retries=False) as caller:
            try:
                return caller.once(call, 10)
            except Refused as error:
                if error.code not in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED") or time.monotonic() > deadline:
                    raise
        number += 1
        time.sleep(0.1)


def test_a_stopped_controller_ends_with_its_children_before_the_other_goes_on(shared):
    name = fresh()
    call = imported(shared, name)
    with shared.call(1, retries=False) as one, shared.call(2) as two, ThreadPoolExecutor(2) as threads:
        with Halting(shared[1], "qemu-img convert") as halting:
            threads.submit(one.once, call)
            child = halting.caught()
        began = time.monotonic()
        with stopped(shared.member(1)):
            until(lambda: ended_by_signal(shared.member(1)), "its end")
        assert time.monotonic() - began > LEASE / 3, "not before its lease is over"
        assert not os.path.exists(f"/proc/{child}"), "what it had started is gone too"
        assert two(call).volume.size_bytes == 64 * MIB
        assert shared.rows(f"SELECT claim, state FROM operation WHERE target = '{volume_name(name)}'") == [(2, "done")]
    until(shared.clean, "the end of all")
    assert names(shared.member(2).pool).count(name) == 1


def test_a_stopped_controller_without_work_ends_too_and_holds_nobody_up(shared):
    with shared.call(2) as two:
        shared[1]
        with stopped(shared.member(1)):
            two(create(fresh()))
            until(lambda: ended_by_signal(shared.member(1)), "its end")
        until(lambda: "c1" not in shared.controllers(), "its burial")
        two(create(fresh()))


def test_a_controller_that_is_cut_off_in_the_middle_of_work_ends_and_the_other_goes_on(postgres):
    with Fleet(postgres) as fleet, Wire(postgres.port) as wire:
        config = fleet.member(1).config
        config.write_text(config.read_text().replace(f":{postgres.port}/", f":{wire.port}/"))
        name = fresh()
        call = imported(fleet, name)
        with fleet.call(1, retries=False) as one, fleet.call(2) as two, ThreadPoolExecutor(2) as threads:
            with Halting(fleet[1], "qemu-img convert") as halting:
                threads.submit(one.once, call)
                halting.caught()
                wire.cut()
                with pytest.raises(Refused) as refused:
                    one.once(create(fresh()), 30)
                assert (refused.value.code, refused.value.reason) == ("UNAVAILABLE", "DATABASE_DOWN")
                until(lambda: ended_by_signal(fleet.member(1)), "its end")
            assert two(call).volume.size_bytes == 64 * MIB
            wire.mend()


def test_a_controller_that_was_cut_off_without_work_goes_on_by_itself(postgres):
    with Fleet(postgres) as fleet, Wire(postgres.port) as wire:
        config = fleet.member(1).config
        config.write_text(config.read_text().replace(f":{postgres.port}/", f":{wire.port}/"))
        with fleet.call(1) as one, fleet.call(2) as two:
            one(create("a"))
            process = fleet.member(1).pid
            wire.cut()
            until(lambda: "c1" not in fleet.controllers(), "its burial", LONG)
            with pytest.raises(Refused) as refused:
                one.once(create("b"), 30)
            assert refused.value.reason == "DATABASE_DOWN"
            with pytest.raises(Refused) as unread:
                one.list_volumes()
            assert unread.value.reason == "DATABASE_DOWN"
            two(create("b"))
            wire.mend()
            one(create("c"))
            assert fleet.member(1).process and fleet.member(1).process.poll() is None and fleet.member(1).pid == process
            until(lambda: "c1" in fleet.controllers(), "its new life", LONG)
            assert set(one.list_volumes()) == {"a", "b", "c"}


def test_a_database_that_is_away_for_longer_than_a_lease_ends_nobody(postgres):
    with Fleet(postgres) as fleet, fleet.call(1) as one, fleet.call(2) as two:
        calls = [create(f"v{number}") for number in range(20)]
        answers = {}
        with ThreadPoolExecutor(8) as threads:
            making = [threads.submit((one, two)[number % 2], call) for number, call in enumerate(calls)]
            while not any(future.done() for future in making):
                time.sleep(0.005)
            postgres.kill9()
            for caller in (one, two):
                with pytest.raises(Refused) as refused:
                    caller.once(create("late"), 20)
                assert refused.value.code == "UNAVAILABLE" and refused.value.reason == "DATABASE_DOWN"
                with pytest.raises(Refused) as unread:
                    caller.list_volumes()
                assert unread.value.reason == "DATABASE_DOWN"
            time.sleep(LEASE + 2)
            postgres.start()
            answers = {call.fields["volume_id"]: future.result(LONG) for call, future in zip(calls, making, strict=True)}
        for number in (1, 2):
            assert fleet.member(number).process.poll() is None and started(fleet.member(number)) == 1, fleet.member(number).tail()
        found = one.list_volumes()
        assert {name: found[name].uid for name in answers} == {name: answer.volume.uid for name, answer in answers.items()}
        until(fleet.clean, "the end of all", LONG)


def test_a_database_that_hangs_for_longer_than_a_lease_ends_nobody(postgres):
    with Fleet(postgres) as fleet, fleet.call(1) as one, fleet.call(2) as two:
        one(create("before"))
        postgres.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(Refused) as refused:
                two.list_volumes()
            assert (refused.value.code, refused.value.reason) == ("UNAVAILABLE", "DATABASE_DOWN")
            time.sleep(max(0.0, LEASE + 2 - (time.monotonic() - began)))
        finally:
            postgres.thaw()
        for caller, name in ((one, "a"), (two, "b")):
            caller(create(name))
        for number in (1, 2):
            assert fleet.member(number).process.poll() is None and started(fleet.member(number)) == 1, fleet.member(number).tail()


def test_restarts_of_the_database_under_load_lose_and_repeat_nothing(shared, postgres):
    rng, wanted = draw(), [fresh("d") for _ in range(count(40, soak=600))]
    uids: dict[str, set[str]] = {name: set() for name in wanted}
    done = threading.Event()

    def live(name: str) -> None:
        call = create(name)
        for _ in range(2):
            uids[name].add(_somewhere(shared, rng.randrange(2), call).volume.uid)

    def restart() -> None:
        for act in (postgres.restart, _crash(postgres)) * count(1, soak=20):
            done.wait(rng.uniform(0.2, 0.6))
            act()

    shared[1], shared[2]
    with ThreadPoolExecutor(9) as threads:
        restarter = threads.submit(restart)
        list(threads.map(live, wanted))
        done.set()
        restarter.result(60)
    assert all(len(found) == 1 for found in uids.values())
    until(shared.clean, "the end of all", LONG)
    assert sorted(set(names(shared.member(1).pool)) & set(wanted)) == sorted(wanted)


def _crash(server):
    def act() -> None:
        server.kill9()
        server.start()

    return act


def test_calls_whose_commits_answers_are_lost_have_one_effect(postgres):
    with Fleet(postgres) as fleet, Wire(postgres.port) as wire:
        config = fleet.member(1).config
        config.write_text(config.read_text().replace(f":{postgres.port}/", f":{wire.port}/"))
        with fleet.call(1, patience=LONG) as one, ThreadPoolExecutor(1) as threads:
            total = count(4, soak=100)
            for number in range(total):
                if number % DEPTH == 0:
                    one(create(f"v{number}"))
                    write_pattern(fleet.member(1), f"v{number}", 7)
                of = volume_name(f"v{number // DEPTH * DEPTH}")
                call = Call("snapshot", {"volume": of, "snapshot_id": f"s{number}", "request_id": fresh("r")})
                lost = wire.lost
                wire.lose_answers(1, delivered=number % 2 == 0)
                asked = threads.submit(one, call)
                until(lambda lost=lost: wire.lost > lost, "the loss")
                wire.mend()
                assert asked.result(LONG).snapshot.uid == one(call).snapshot.uid
            assert sum(len(one.list_snapshots(f"v{first}")) for first in range(0, total, DEPTH)) == total
            assert len(fleet.rows("SELECT 1 FROM operation WHERE method = 'CreateSnapshot'")) == total


def test_work_that_hangs_in_a_dead_controllers_child_is_waited_for(shared):
    """The pool's lock tells that something of the dead one still works: the taker leaves the operation until it is gone."""
    name = fresh()
    with shared.call(2) as two:
        shared[1]
        locks = shared.member(1).state / "pool-locks" / "p.lock"
        holder = os.open(locks, os.O_RDWR)  # stands for a child that the kernel keeps: the lock is the same open file
        call = imported(shared, name)
        with shared.call(1, retries=False) as one, ThreadPoolExecutor(1) as threads:
            with Halting(shared[1], "qemu-img convert") as halting:
                threads.submit(one.once, call)
                halting.caught()
                (pid,) = commands(shared.member(1), "qemu-img convert")
                kept = f"/proc/{pid}/fd"
                held = next(int(fd) for fd in os.listdir(kept) if os.readlink(f"{kept}/{fd}") == str(locks))
                os.close(holder)
                holder = _steal(pid, held)
                shared.member(1).kill9()
            until(lambda: "c1" not in shared.controllers(), "its burial")
            time.sleep(2.5)
            assert shared.rows(f"SELECT claim FROM operation WHERE target = '{volume_name(name)}'") == [(1,)]
            os.close(holder)
            assert two(call).volume.size_bytes == 64 * MIB


def _steal(pid: int, descriptor: int) -> int:
    """A copy of another process's open file (pidfd_getfd): the lock stays as long as this one is open."""
    import ctypes

    handle = os.pidfd_open(pid)
    with contextlib.closing(os.fdopen(handle, "rb", closefd=True)):
        return ctypes.CDLL(None).syscall(438, handle, descriptor, 0)
