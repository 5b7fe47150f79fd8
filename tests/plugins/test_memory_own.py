"""An array of a pool's own: found by every opening, replaced truthfully, gone with the gateway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugins.memory_rig import MIB, Array, gone, until
from volgate.backend import PoolContext
from volgate.errors import Unreachable
from volgate.model import Format, Health, VolumeSpec
from volgate_plugins.memory import Memory, MemorySettings, own
from volgate_plugins.memory.server import Status


@pytest.fixture
def context():
    made = PoolContext("own", f"test-{uuid.uuid4()}")
    yield made
    path = own.place(made)
    if Path(path).exists():
        array = subprocess.run(
            [sys.executable, "-m", "volgate_plugins.memory.control", "--socket", path, "stop"], timeout=20, check=False, capture_output=True
        )
        assert array.returncode == 0
        until(lambda: not Path(path).exists())
    Path(f"{path}.volumes").unlink(missing_ok=True)


def test_every_opening_finds_the_same_own_array(context):
    with ThreadPoolExecutor(6) as threads:
        pools = list(threads.map(lambda _: Memory.open(MemorySettings(capacity_bytes=5 * MIB), context), range(6)))
    spec = VolumeSpec("a", str(uuid.uuid4()), MIB, Format.RAW)
    pools[0].create_volume(spec)
    assert {pool.get_volume("a").uid for pool in pools} == {spec.uid}
    assert pools[0].capacity().total == 5 * MIB
    for pool in pools:
        pool.close()


def test_an_own_array_that_was_killed_is_replaced_truthfully(context):
    pool = Memory.open(MemorySettings(connect_seconds=0.5), context)
    client = pool._client
    first = client.call("hello", Status)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: gone(first.pid))
    assert pool.check().health is Health.OK, "it had nothing to lose"
    assert not Path(first.root).exists(), "what the killed one left in memory is freed"
    pool.create_volume(VolumeSpec("a", str(uuid.uuid4()), MIB, Format.RAW))
    second = client.call("hello", Status)
    os.kill(second.pid, signal.SIGKILL)
    until(lambda: gone(second.pid))
    with pytest.raises(Unreachable):
        pool.get_volume("a")
    assert "ended and took them with it" in pool.check().message
    pool.close()


def test_what_a_killed_array_left_in_memory_is_freed_by_the_next_one(context):
    lost = PoolContext("lost", context.instance)
    pools = [Memory.open(MemorySettings(), lost)]
    said = pools[0]._client.call("hello", Status)
    os.kill(said.pid, signal.SIGKILL)
    until(lambda: gone(said.pid))
    assert Path(said.root).exists()
    pools.append(Memory.open(MemorySettings(), context))
    assert not Path(said.root).exists()
    for pool in pools:
        pool.close()
    assert not Path(own.place(lost)).exists()


def test_an_array_ends_with_the_process_that_it_is_for(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as owner:
        path = tmp_path / "array.sock"
        command = [sys.executable, "-m", "volgate_plugins.memory.array", "--socket", str(path), "--until-gone", str(owner.pid), "--detach"]
        assert subprocess.run(command, timeout=20, check=False).returncode == 0
        status = Array.of(path).status()
        assert status.owner == owner.pid and Path(status.root).is_dir()
        assert os.getsid(status.pid) == status.pid
        owner.kill()
        owner.wait()
    until(lambda: gone(status.pid))
    assert not Path(status.root).exists() and list(tmp_path.iterdir()) == []
    assert subprocess.run(command, timeout=20, check=False, capture_output=True).returncode == 1, "its owner is gone already"
