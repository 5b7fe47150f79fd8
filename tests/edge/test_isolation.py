"""A storage that hangs stops its own pool and nothing else: not the index, not another pool, not a new call, not a stop."""

from __future__ import annotations

import os
import time

import grpc
import pytest

from tests.edge.place import CONFIG, MIB, running
from tests.edge.plugin import plugin
from tests.edge.wire import refusal
from volgate.v1 import operation_pb2, pool_pb2, volume_pb2

PLUGIN = '''
"""A plugin whose storage hangs for as long as a file exists."""
import pathlib
import time
from volgate.backend import BackendType, hookimpl
from volgate_plugins.directory import Directory, DirectorySettings

class Deaf(Directory):
    def get_volume(self, name):
        while (pathlib.Path(__file__).parent / "hang").exists():
            time.sleep(0.05)
        return super().get_volume(name)

@hookimpl
def volgate_backends():
    return [BackendType(kind="deaf", settings=DirectorySettings, open=Deaf.open, summary="hangs", in_threads=True)]
'''
MANY = 400  # more than any lane has slots, and than a pool's lane takes


@pytest.fixture
def hung(monkeypatch):
    """A gateway with a good pool and one whose calls hang, with many calls in it; and what lets it go on."""
    with plugin("deaf", PLUGIN) as folder:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", "")))))
        config = CONFIG + f'[server]\nstop_seconds = 3.0\n[pools.deaf]\nkind = "deaf"\npath = "{folder}/pool"\n'
        with running(config) as place:
            place.volume(MIB, volume_id="good")
            (folder / "hang").touch()
            refresh = volume_pb2.GetVolumeRequest(name="pools/deaf/volumes/v", refresh=True)
            calls = [place.wire.volumes.GetVolume.future(refresh, timeout=60) for _ in range(MANY)]
            for number in range(MANY):
                request = volume_pb2.CreateVolumeRequest(
                    pool="pools/deaf", volume_id=f"v{number}", size_bytes=MIB, validate_only=number % 2
                )
                calls.append(place.wire.volumes.CreateVolume.future(request, timeout=60))
            time.sleep(1.0)
            yield place, calls, (folder / "hang").unlink
            (folder / "hang").unlink(missing_ok=True)


def test_a_pool_that_hangs_keeps_nobody_else_waiting(hung):
    place, calls, go_on = hung
    wire, slowest = place.wire, 0.0
    good = "pools/main/volumes/good"
    for number in range(5):
        for call, request in (
            (wire.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=good)),
            (wire.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=good, refresh=True)),
            (wire.volumes.ListVolumes, volume_pb2.ListVolumesRequest()),
            (wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=f"new{number}", size_bytes=MIB)),
            (wire.volumes.UpdateVolume, volume_pb2.UpdateVolumeRequest(name=good, labels={"n": str(number)})),
            (wire.pools.GetPool, pool_pb2.GetPoolRequest(name="pools/main")),
            (wire.operations.ListOperations, operation_pb2.ListOperationsRequest(page_size=5)),
        ):
            began = time.monotonic()
            call(request, timeout=20)
            slowest = max(slowest, time.monotonic() - began)
    refused = [refusal(call.exception()) for call in calls if call.done()]
    print(
        f"{len(refused)} of {len(calls)} calls to the hung pool are refused, {len(calls) - len(refused)} wait; slowest elsewhere {slowest:.3f} s"
    )
    assert slowest < 5, "a loaded machine is slow, a starved call does not come back at all"
    assert refused and {(said.code, said.reason) for said in refused} == {("UNAVAILABLE", "BUSY")}
    assert all(said.retry_after for said in refused)
    assert len(refused) < len(calls), "up to the lane's depth they wait"
    go_on()
    for call in calls:
        try:
            call.result()
        except grpc.RpcError as error:
            assert refusal(error).code in {"UNAVAILABLE", "NOT_FOUND"}, "refused before, or answered that there is no such volume"


def test_a_server_with_a_hung_pool_stops_in_time(hung):
    place, _, _ = hung
    began = time.monotonic()
    assert place.server.stop() == 0
    assert time.monotonic() - began < 12, "stop_seconds, 3, and a little"
