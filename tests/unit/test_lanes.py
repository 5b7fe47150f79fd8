import threading
import time

import pytest

from volgate.errors import Busy, Unreachable
from volgate.lanes import Lane


def test_calls_beyond_width_and_depth_are_refused_at_once():
    lane, gate = Lane("t", 2, 1), threading.Event()
    futures = [lane.submit(gate.wait, 10) for _ in range(3)]
    with pytest.raises(Busy) as refused:
        lane.submit(gate.wait, 10)
    assert refused.value.retry_after
    assert lane.refused == 1
    gate.set()
    assert [f.result(5) for f in futures] == [True] * 3
    lane.close()


def test_a_hung_call_keeps_its_slot_and_the_caller_is_told():
    lane, gate = Lane("t", 1, 4), threading.Event()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not answer"):
        lane.call_within(0.1, gate.wait, 10)
    assert time.monotonic() - began < 5
    with pytest.raises(Unreachable, match="nothing was started"):
        lane.call_within(0.1, lambda: 1)
    gate.set()
    assert lane.call_within(5, lambda: 7) == 7
    lane.close()


def test_an_exception_reaches_the_caller():
    lane = Lane("t", 1, 1)
    with pytest.raises(ZeroDivisionError):
        lane.call(lambda: 1 / 0)
    lane.close()
    with pytest.raises(Unreachable):
        lane.submit(lambda: 1)


def test_many_callers_all_get_their_own_answer():
    lane = Lane("t", 8, 10_000)
    futures = [lane.submit(lambda n=n: n * n) for n in range(5000)]
    assert [f.result(10) for f in futures] == [n * n for n in range(5000)]
    assert lane.running <= 8
    lane.close()
