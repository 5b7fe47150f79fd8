"""Turns: order and wakings between two that share a database, lost wakings, lost places; and what a failure is told as elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.controllers.fleet import until
from volgate.errors import AlreadyExists, Busy, Holder, InUse, OutOfSpace, VolgateError
from volgate.operations import codec
from volgate.operations.order import SharedOrder
from volgate.store import turns
from volgate.store.database import Database
from volgate.store.records import OperationRecord, OperationState


class Side:
    """One controller's order; `took` are the members whose turn came."""

    def __init__(self, database: Database) -> None:
        self.database, self.order = database, SharedOrder(database)
        self.order.alone = False
        self.took: list[str] = []
        self.stop = threading.Event()
        self.heard: list[str] = []
        self.ear = threading.Thread(target=database.place.listen, args=(self.hear, self.stop), daemon=True)

    def hear(self, said: str) -> None:
        self.heard.append(said)
        word, *rest = said.split(" ")
        if word == "turn" and rest[0] == self.database.owner:
            self.order.look(rest[1])

    def come(self, member: str, *keys: str) -> None:
        self.order.enter(member, keys, lambda: self.took.append(member))
        self.database.write(lambda commit: self.order.begin(commit, member, keys))
        self.order.begun(member)

    def go(self, member: str) -> None:
        self.database.write(lambda commit: self.order.end(commit, member))
        self.order.leave(member)


@pytest.fixture
def sides(on_postgres) -> Iterator[tuple[Side, Side]]:
    made = Side(on_postgres.open(name="a")), Side(on_postgres.open(name="b"))
    yield made
    for side in made:
        side.stop.set()
        if side.ear.is_alive():
            side.ear.join(10)
        side.database.close()


def test_who_came_first_is_first_at_whichever_controller(sides):
    a, b = sides
    for side in sides:
        side.ear.start()
    until(lambda: "" in a.heard and "" in b.heard, "their ears")
    a.come("m1", "x")
    b.come("m2", "x", "y")
    a.come("m3", "y")
    b.come("m4", "z")
    a.come("m5", "x")
    assert (a.took, b.took) == (["m1"], ["m4"])
    a.go("m1")
    until(lambda: b.took == ["m4", "m2"], "the word")
    assert a.took == ["m1"]
    b.go("m2")
    until(lambda: sorted(a.took[1:]) == ["m3", "m5"], "the word")
    for side, member in ((a, "m3"), (a, "m5"), (b, "m4")):
        side.go(member)
    assert "end m1" in b.heard
    with a.database.read() as connection:
        assert all(turns.is_free(connection, key) for key in "xyz")


def test_what_was_not_heard_is_found_by_a_look(sides):
    a, b = sides
    a.come("m1", "x")
    b.come("m2", "x")
    a.go("m1")
    assert b.took == []
    b.order.poll()
    assert b.took == ["m2"]
    b.order.poll()
    b.order.look("m2")
    assert b.took == ["m2"], "once"
    b.go("m2")


def test_a_place_that_nobody_knows_of_is_given_up(sides):
    a, b = sides
    a.database.write(lambda commit: turns.enter(commit, "lost", ["x"], a.database.owner))
    b.come("m", "x")
    a.order.poll()
    assert b.took == [], "it may be on its way"
    a.order.poll()
    b.order.poll()
    assert b.took == ["m"]
    b.go("m")


def test_a_long_read_is_held_against_everybody(sides):
    a, b = sides
    release = a.order.hold("x", 5)
    assert b.order.hold_if_free("x") is None and not b.order.is_free("x")
    with pytest.raises(Busy):
        b.order.hold("x", 0.2)
    release()
    assert b.order.is_free("x")
    mine = b.order.hold_if_free("x")
    assert mine is not None and a.order.hold_if_free("x") is None
    mine()
    for side in sides:
        assert side.order._known == set() and side.order._waiting == {}


def test_looks_at_free_objects_from_all_sides_leave_one_winner(sides):
    for number in range(20):
        won = []
        barrier = threading.Barrier(4)

        def take(side: Side, key: str, won=won, barrier=barrier) -> None:
            barrier.wait(10)
            if release := side.order.hold_if_free(key):
                won.append(release)

        threads = [threading.Thread(target=take, args=(side, f"k{number}")) for side in sides * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(won) <= 1
        for release in won:
            release()


@pytest.mark.parametrize(
    "error",
    [
        InUse("v: a is attached", holders=(Holder("attachment", "attachments/1", "domain d"),)),
        AlreadyExists("v exists", metadata={"uid": "u"}, field="volume_id"),
        OutOfSpace("no space", reason="QUOTA_EXCEEDED"),
        Busy("a queue is full", retry_after=7.0),
        VolgateError("a bug", metadata={"id": "x"}),
    ],
    ids=lambda error: error.reason,
)
def test_a_failure_is_told_elsewhere_as_it_is_here(error):
    record = OperationRecord(
        id="1",
        method="M",
        target="t",
        request_id="",
        body_hash="",
        principal="",
        state=OperationState.FAILED,
        request=b"",
        facts=b"",
        created_at=time.time(),
        error_reason=error.reason,
        error_message=error.message,
        result=codec.encode_failure(error),
    )
    told = codec.decode_failure(record)
    assert type(told) is type(error) and told.operation == "operations/1"
    for field in ("message", "reason", "field", "holders", "metadata", "retry_after", "status", "retryable"):
        assert getattr(told, field) == getattr(error, field), field
