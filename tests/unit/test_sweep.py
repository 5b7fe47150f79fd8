"""Work for many pools, side by side."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest

from volgate.operations.sweep import Sweep


@dataclass
class Named:
    """All that a sweep asks of a pool."""

    name: str


POOLS = [Named(name) for name in ("a", "b", "c")]


def test_all_pools_are_worked_on_at_once():
    meeting = threading.Barrier(3)
    assert Sweep("s").run(POOLS, lambda pool: meeting.wait(10) * 0 + ord(pool.name)) == {"a": 97, "b": 98, "c": 99}


def test_one_that_hangs_is_left_behind_not_begun_twice_and_answers_later():
    go_on, begun = threading.Event(), []

    def work(pool: Named) -> str:
        begun.append(pool.name)
        if pool.name == "b":
            go_on.wait(30)
        return pool.name

    sweep = Sweep[Named, str]("s")
    assert sweep.run(POOLS, work, 0.3) == {"a": "a", "c": "c"}
    since = time.monotonic()
    assert sweep.run(POOLS, work, 20) == {"a": "a", "c": "c"}
    assert time.monotonic() - since < 10, "it is not waited for again"
    go_on.set()
    while sweep.run([], work) != {"b": "b"}:
        assert time.monotonic() - since < 10
        time.sleep(0.01)
    assert sorted(begun) == ["a", "a", "b", "c", "c"]


def test_an_error_is_raised_when_the_others_have_ended():
    ended = []

    def work(pool: Named) -> None:
        if pool.name == "a":
            raise KeyError("a bug")
        time.sleep(0.1)
        ended.append(pool.name)

    with pytest.raises(KeyError, match="a bug"):
        Sweep[Named, None]("s").run(POOLS, work)
    assert sorted(ended) == ["b", "c"]
