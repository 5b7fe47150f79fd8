"""A drained pool takes nothing new, serves what it has, and stays drained through a crash."""

from __future__ import annotations

from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from volgate.v1 import pool_pb2, volume_pb2


def create(wire, name):
    return wire.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/default", volume_id=name, size_bytes=1 << 20), timeout=20)


def drain(wire, *, resume):
    return wire.pools.DrainPool(pool_pb2.DrainPoolRequest(name="pools/default", resume=resume), timeout=20).pool


def test_a_drained_pool_stays_drained_through_a_crash(tmp_path):
    server = Server(tmp_path / "state").start()
    try:
        with Wire(server.address) as wire:
            create(wire, "before")
            assert drain(wire, resume=False).draining
        server.kill9()
        server.start()
        with Wire(server.address) as wire:
            request = volume_pb2.CreateVolumeRequest(pool="pools/default", volume_id="during", size_bytes=1 << 20)
            refusal = refused(wire.volumes.CreateVolume, request)
            assert refusal.code == "FAILED_PRECONDITION"
            assert "draining" in refusal.message
            wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name="pools/default/volumes/before", size_bytes=2 << 20), timeout=20)
            create(wire, "before")
            assert not drain(wire, resume=True).draining
            create(wire, "after")
    finally:
        server.stop()
