"""Pools whose storage does not tell its space: the list of pools waits for all of them once, and shows what was known before."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.place import CONFIG, MIB, Place, running
from tests.edge.plugin import plugin
from volgate.v1 import pool_pb2

PLUGIN = '''
"""A backend whose space cannot be measured for as long as a file exists."""
import pathlib
import time
from volgate.backend import BackendType, hookimpl
from volgate_plugins.directory import Directory, DirectorySettings

class Mute(Directory):
    def capacity(self):
        while (pathlib.Path(__file__).parent / "hang").exists():
            time.sleep(0.05)
        return super().capacity()

@hookimpl
def volgate_backends():
    return [BackendType(kind="mute", settings=DirectorySettings, open=Mute.open, summary="hangs")]
'''
HUNG = ("pools/mute1", "pools/mute2", "pools/mute3")


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, Path]]:
    """A gateway with three pools that hang while the file is there, which it is not yet."""
    with plugin("mute", PLUGIN) as folder:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", "")))))
        pools = "".join(f'[pools.mute{n}]\nkind = "mute"\npath = "{folder}/pool{n}"\n' for n in (1, 2, 3))
        with running(f"{CONFIG}[server]\nstop_seconds = 3.0\n{pools}") as place:
            yield place, folder / "hang"
            (folder / "hang").unlink(missing_ok=True)


def listed(place: Place) -> tuple[dict[str, pool_pb2.Pool], float]:
    """The pools by name, and how many seconds the list took."""
    began = time.monotonic()
    found = place.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=60).pools
    return {pool.name: pool for pool in found}, time.monotonic() - began


def space(pool: pool_pb2.Pool) -> tuple[int, ...]:
    return pool.total_bytes, pool.free_bytes, pool.provisioned_bytes, pool.provisioned_limit_bytes


def test_pools_that_hang_are_measured_side_by_side_and_shown_with_what_was_known(hung: tuple[Place, Path]):
    place, hang = hung
    for name in HUNG:
        place.volume(MIB, pool=name.partition("/")[2])
    before, quick = listed(place)
    assert quick < 10 and all(before[name].health == pool_pb2.POOL_HEALTH_OK for name in HUNG)
    hang.touch()
    place.volume(8 * MIB)
    during, took = listed(place)
    again, soon = listed(place)
    print(f"{quick:.2f} s before, {took:.2f} s when {len(HUNG)} pools begin to hang, {soon:.2f} s as long as they do")
    assert 9 < took < 15, "ten seconds and a little for all together"
    assert soon < 5, "what has not answered yet is not waited for again"
    for seen in (during, again):
        for name in HUNG:
            assert seen[name].health == pool_pb2.POOL_HEALTH_DEGRADED and "capacity" in seen[name].problem
            assert space(seen[name]) == space(before[name]) and seen[name].provisioned_bytes == MIB
            assert seen[name].lane_running <= 1, "asked once"
        assert seen["pools/main"].health == pool_pb2.POOL_HEALTH_OK
        assert seen["pools/main"].provisioned_bytes == before["pools/main"].provisioned_bytes + 8 * MIB
        assert seen["pools/gone"].health == pool_pb2.POOL_HEALTH_DOWN
    hang.unlink()
    deadline = time.monotonic() + 20
    while (after := listed(place)[0])[HUNG[0]].health != pool_pb2.POOL_HEALTH_OK or after[HUNG[2]].problem:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    place.volume(MIB, pool="mute2")
    assert listed(place)[0][HUNG[1]].provisioned_bytes == 2 * MIB
