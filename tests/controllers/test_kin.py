"""What one controller can tell of another one's process, and when it must not believe that all of it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from volgate.occupancy import Occupancy, is_free
from volgate.operations import kin
from volgate.store.controllers import Identity


@pytest.fixture
def here(tmp_path: Path) -> Identity:
    return kin.identify("here", tmp_path / "here")


@pytest.fixture
def process():
    made = subprocess.Popen(["sleep", "600"])
    yield made
    made.kill()
    made.wait()


def of(process: subprocess.Popen[bytes], here: Identity, folder: Path) -> Identity:
    return replace(here, id="other", name="other", pid=process.pid, started=kin._started(process.pid), locks=str(folder))


def test_this_process_knows_itself(here):
    assert (here.pid, here.started > 0, len(here.id)) == (os.getpid(), True, 32)
    assert here.machine and here.boot and here.space.startswith("pid:")
    assert kin.identify("here", Path("x")).id != here.id
    assert not kin.certainly_gone(here, here)


def test_a_process_is_gone_when_its_pid_is_or_is_anothers_or_its_machine_booted(here, process, tmp_path):
    other = of(process, here, tmp_path)
    assert not kin.certainly_gone(other, here)
    assert kin.certainly_gone(replace(other, started=other.started - 1), here), "the pid was used again"
    assert kin.certainly_gone(replace(other, boot="an earlier one"), here)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert kin.certainly_gone(other, here), "a zombie does nothing any more"


@pytest.mark.parametrize("change", [{"machine": "another"}, {"machine": ""}, {"space": "pid:[1]"}])
def test_nothing_is_certain_of_a_process_that_cannot_be_seen(here, process, tmp_path, change):
    other = replace(of(process, here, tmp_path), **change)
    process.kill()
    process.wait()
    assert not kin.certainly_gone(other, here)
    assert kin.left_pool(other, here, "p", ours=False), "its lease has ended it"
    kin.end(other, here)


def test_a_process_that_is_silent_is_ended_where_it_can_be_seen(here, process, tmp_path):
    other = of(process, here, tmp_path)
    kin.end(replace(other, started=1), here)
    assert process.poll() is None, "that is another one"
    os.kill(process.pid, signal.SIGSTOP)
    assert not kin.left_pool(other, here, "p", ours=True)
    kin.end(other, here)
    assert process.wait(30) == -signal.SIGKILL
    assert kin.left_pool(other, here, "p", ours=False)


def test_a_pool_whose_lock_is_held_has_somebody_at_work(here, process, tmp_path):
    other = of(process, here, tmp_path)
    process.kill()
    process.wait()
    held = Occupancy(tmp_path / "p.lock")
    held.take()
    assert not is_free(tmp_path / "p.lock")
    assert not kin.left_pool(other, here, "p", ours=True), "another folder's lock says nothing of this one"
    assert kin.left_pool(other, here, "q", ours=False), "of a pool that was never opened there is no file"
    assert kin.left_pool(replace(other, locks=here.locks), here, "p", ours=True), "the same folder: the lock is ours"
    assert not kin.left_pool(replace(other, locks=here.locks), here, "p", ours=False)
    held.release()
    assert kin.left_pool(other, here, "p", ours=False)
