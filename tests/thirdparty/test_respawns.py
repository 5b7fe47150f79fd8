"""Workers that die again and again: each is replaced, and nothing of them stays in the gateway."""

import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.soaking import SOAK, count
from volgate.errors import Unreachable
from volgate.worker import supervisor as supervisors
from volgate.worker.facet_calls import METHODS
from volgate.worker.link import Start
from volgate.worker.offers import PoolOf
from volgate.worker.supervisor import Supervisor

RESPAWNS = count(12, soak=1000)
GROWTH = 2 << 20
"""Bytes of memory: what Python's own allocator keeps may vary by so much."""


def memory() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    found = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
    return {grandchild for child in found for grandchild in [child, *Path(f"/proc/{child}/task/{child}/children").read_text().split()]}


def held() -> tuple[int, int, int, int]:
    """What this process holds: bytes of memory, descriptors, threads, processes."""
    return memory(), descriptors(), threading.active_count(), len(children())


def call(workers: Supervisor) -> object:
    """Read the pool's capacity; a call that falls into the loss of a worker is told so, and repeated."""
    for _ in range(50):
        try:
            return workers.call(METHODS["capacity"], {})
        except Unreachable as error:
            assert error.reason in ("WORKER_LOST", "POOL_DOWN"), error
            time.sleep(0.05)
    raise AssertionError("the pool does not come back")


def test_a_pool_that_opens_slowly_is_given_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As one with thousands of volumes to put back, on a machine that is busy with its own start."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(supervisors, "_OPEN_SECONDS", (1.0, 32.0))
    (tmp_path / "pool.orders").mkdir()
    (tmp_path / "pool.orders/open").write_text("sleep! 3")
    workers = Supervisor(
        PoolOf("unruly", {"path": str(tmp_path / "pool")}, "pools.p", "p", "a-gateway"), Start("tests.thirdparty.unruly"), timeout=30
    )
    try:
        with pytest.raises(Unreachable, match="open did not end within 1 s"):
            workers.open()
        deadline = time.monotonic() + 100
        while True:
            try:
                workers.open()
                break
            except Unreachable as error:
                assert error.reason == "POOL_DOWN" and time.monotonic() < deadline, error
                time.sleep(error.retry_after)
    finally:
        workers.close()


@pytest.mark.timeout(3600 if SOAK else 180)
def test_nothing_grows_when_workers_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(supervisors, "_CALM", 0.0)  # each loss is told from the one before it: no pauses
    (tmp_path / "pool.orders").mkdir()
    pool = PoolOf("unruly", {"path": str(tmp_path / "pool")}, "pools.p", "p", "a-gateway")
    workers = Supervisor(pool, Start("tests.thirdparty.unruly"), timeout=30)
    try:
        workers.open()
        for number in range(RESPAWNS + 3):
            call(workers)
            if number == 3:  # all that is made once is made
                before = held()
            pid = workers.pid
            os.kill(pid, signal.SIGKILL)
            while workers.pid == pid:
                time.sleep(0.002)
        call(workers)
        deadline = time.monotonic() + 10
        # the last one is being buried
        while any(now > then for now, then in zip(held()[1:], before[1:], strict=True)) and time.monotonic() < deadline:
            time.sleep(0.05)
        after = held()
    finally:
        workers.close()
    grown = [now - then for now, then in zip(after, before, strict=True)]
    print(f"{RESPAWNS} workers; grown by {grown[0]} bytes, {grown[1]} descriptors, {grown[2]} threads, {grown[3]} processes")
    assert grown[0] <= GROWTH and max(grown[1:]) <= 0, grown  # what others in this process had may have gone
