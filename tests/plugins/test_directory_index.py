"""Names, promises and locks in memory."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from volgate.errors import OutOfSpace
from volgate_plugins.directory.beside import Beside
from volgate_plugins.directory.index import Entry, Index, Locks


@pytest.fixture
def index(tmp_path):
    return Index(str(tmp_path), lambda stored_as: Entry(stored_as.rpartition(".")[0], "uid", 10))


def touched(folder, moment: float) -> None:
    os.utime(folder, (moment, moment))


def test_a_folder_that_changed_lately_is_looked_at_again_although_its_time_is_the_same(index, tmp_path):
    (tmp_path / "a.1").mkdir()
    moment = time.time() + 60  # later than any pause of this test
    touched(tmp_path, moment)
    assert index.objects() == [("a", "a.1")] and index.lookup("b") is None
    (tmp_path / "b.1").mkdir()
    touched(tmp_path, moment)
    assert index.lookup("b") == "b.1" and index.objects() == [("a", "a.1"), ("b", "b.1")]


def test_a_folder_that_rests_is_read_once(index, tmp_path):
    (tmp_path / "a.1").mkdir()
    moment = time.time() - 1
    touched(tmp_path, moment)
    assert index.provisioned() == 10
    (tmp_path / "b.1").mkdir()
    touched(tmp_path, moment)
    assert index.provisioned() == 10
    touched(tmp_path, moment + 0.5)
    assert index.provisioned() == 20
    (tmp_path / "c.1").mkdir()
    touched(tmp_path, moment - 5)
    assert index.provisioned() == 30, "a clock may be set back"


def test_what_others_removed_is_forgotten_and_no_longer_promised(index, tmp_path):
    for name in ("a.1", "b.1"):
        (tmp_path / name).mkdir()
    assert index.provisioned() == 20
    (tmp_path / "a.1").rmdir()
    assert index.objects() == [("b", "b.1")] and index.lookup("a") is None and index.provisioned() == 10


def test_an_object_that_goes_while_it_is_read_is_passed_over(tmp_path):
    def read(stored_as: str) -> Entry:
        if stored_as == "a.1":
            raise FileNotFoundError(stored_as)
        return Entry("b", "uid", 10)

    for name in ("a.1", "b.1"):
        (tmp_path / name).mkdir()
    assert Index(str(tmp_path), read).objects() == [("b", "b.1")]


def test_a_name_goes_with_its_own_object_only(index):
    for older, newer in (("a.1", "a.2"), ("a.2", "a.1")):
        index.put(older, Entry("a", older, 3))
        index.put(newer, Entry("a", newer, 4))
        index.drop(older)
        assert index.lookup("a") == newer
        index.drop(older)
        index.drop(newer)
    index.put("a.2", Entry("a", "2", 5))
    assert index._provisioned == 5
    index.drop("a.2")
    assert index._provisioned == 0 and index.lookup("a") is None


def test_a_promise_counts_while_it_is_held_and_after_it_was_kept(index, tmp_path):
    for name in ("a.1", "b.1"):
        (tmp_path / name).mkdir()
    assert index.provisioned() == 20
    with index.promise("a.1", Entry("a", "uid", 17), limit=27):
        assert index.provisioned() == 27
        with pytest.raises(OutOfSpace, match="37 would be promised, the pool's limit is 36"), index.promise("c.1", Entry("c", "", 10), 36):
            raise AssertionError("no room was there")
        with pytest.raises(ZeroDivisionError), index.promise("c.1", Entry("c", "", 10), 37):
            assert index.provisioned() == 37
            raise ZeroDivisionError
        assert index.provisioned() == 27
    assert index.provisioned() == 27 and index._held == {}


def test_who_asks_for_no_more_than_he_has_is_not_refused(index, tmp_path):
    (tmp_path / "a.1").mkdir()
    assert index.provisioned() == 10
    for promised in (10, 4):
        with index.promise("a.1", Entry("a", "uid", promised), limit=1):
            assert index.provisioned() == 10, "what shrinks is given back at the end"
    assert index.provisioned() == 4


def test_a_lock_is_kept_for_those_who_wait_and_forgotten_after_the_last(tmp_path):
    locks, order = Locks(Beside(str(tmp_path))), list[str]()
    free = {name: threading.Event() for name in "abc"}

    def hold(name: str) -> None:
        with locks.holding("x", "x"):
            order.append(name)
            free[name].wait(10)

    def come(name: str, *, users: int) -> None:
        pool.submit(hold, name)
        until(lambda: locks._locks["x"][1] == users)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(hold, "a")
        until(lambda: order == ["a"])
        come("b", users=2)
        free["a"].set()
        until(lambda: order == ["a", "b"])
        come("c", users=2)
        time.sleep(0.05)
        assert order == ["a", "b"], "one holds it, another waits"
        free["b"].set()
        until(lambda: order == ["a", "b", "c"])
        free["c"].set()
    assert locks._locks == {}


def test_whoever_holds_a_lock_gets_it_again_and_other_names_are_free(tmp_path):
    locks = Locks(Beside(str(tmp_path)))
    with locks.holding("x"), locks.holding("x", "y"):
        assert set(locks._locks) == {"x", "y"}
        with ThreadPoolExecutor(1) as other:
            assert other.submit(one, locks, "z").result(5) == {"x", "y", "z"}
    assert not locks._locks


def one(locks: Locks, name: str) -> set[str]:
    with locks.holding(name):
        return set(locks._locks)


def until(true) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
