"""The lease: what may work until when, and a helper that ends whoever does not renew it, however stopped he is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.controllers.fleet import until
from volgate.errors import Unreachable
from volgate.forker import clock
from volgate.operations.lease import Lease

SERVED = """
import sys, time
from volgate.forker import clock
from volgate.spawner import Spawner
spawner = Spawner.start()
child = spawner.spawn(["sleep", "600"], descriptors=[0, 1, 2])
{act}
print(child.pid, spawner.pid, flush=True)
time.sleep(600)
"""


def started(act: str) -> tuple[subprocess.Popen[str], int, int]:
    """A process with a child, that does something about its lease; its own pid's object, the child's, the helper's."""
    process = subprocess.Popen([sys.executable, "-c", SERVED.format(act=act)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child, helper = map(int, process.stdout.readline().split())
    return process, child, helper


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("stops", [False, True], ids=["busy", "stopped"])
def test_who_does_not_renew_is_killed_with_all_that_it_started(stops):
    process, child, helper = started("spawner.lease(clock() + 1.0)")
    if stops:
        os.kill(process.pid, signal.SIGSTOP)
    assert process.wait(60) == -signal.SIGKILL
    until(lambda: not alive(child) and not alive(helper), "their end")
    process.stdout.close()


def test_who_renews_or_gives_back_lives_on_also_with_a_new_helper():
    renewing = "for _ in range(8): spawner.lease(clock() + 1.0); time.sleep(0.3)"
    for act in (f"{renewing}; spawner.lease(0.0)", "spawner.lease(clock() + 1.0); spawner.lease(0.0)"):
        process, child, _ = started(act)
        time.sleep(1.5)
        assert process.poll() is None and alive(child)
        process.kill()
        process.wait(30)
        until(lambda child=child: not alive(child), "its end")
        process.stdout.close()


def test_a_helper_that_was_killed_is_followed_by_one_that_knows_the_lease():
    act = "import os, signal\nspawner.lease(clock() + 600)\nos.kill(spawner.pid, signal.SIGKILL)\ntime.sleep(0.5)\nspawner.lease(clock() + 1.0)"
    process, child, _ = started(act)
    assert process.wait(60) == -signal.SIGKILL
    until(lambda: not alive(child), "its end")
    process.stdout.close()


def test_work_needs_a_lease_and_keeps_it_from_being_given_back():
    told: list[float] = []
    lease = Lease(0.6, told.append)
    with pytest.raises(Unreachable) as refused, lease.working():
        raise AssertionError
    assert refused.value.reason == "DATABASE_DOWN"
    lease.renew(clock())
    with lease.working():
        _wait(lease, told[-1])
    assert told[-1] > 0, "the helper ends it"
    lease.renew(clock())
    _wait(lease, told[-1] - 0.02)
    assert told[-1] == 0.0, "nothing was at work"
    with pytest.raises(Unreachable):
        lease.require()


def _wait(lease: Lease, moment: float) -> None:
    while clock() < moment:
        lease.give_back()
        time.sleep(0.005)


def test_a_heartbeat_that_took_too_long_gives_no_time():
    told: list[float] = []
    lease = Lease(0.6, told.append)
    lease.renew(clock() - 1.0)
    assert told == [], "the helper is not told to end what does nothing"
    with pytest.raises(Unreachable):
        lease.require()


def test_resting_ends_with_the_lease():
    lease = Lease(0.3)
    lease.renew(clock())
    with pytest.raises(Unreachable), lease.working(), lease.resting():
        _wait(lease, clock() + 0.3)  # so long the database was away, and nothing was at work
    lease.renew(clock())
    with lease.working():
        pass


def test_without_other_controllers_there_is_no_end():
    lease = Lease()
    lease.give_back()
    with lease.working(), lease.resting():
        lease.require()
