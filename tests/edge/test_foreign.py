"""Foreign objects and deleted volumes are listed with the pool; adoption makes volumes of them."""

from __future__ import annotations

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from volgate.v1 import pool_pb2, volume_pb2

MIB = 1 << 20
QCOW2, RAW = volume_pb2.VOLUME_FORMAT_QCOW2, volume_pb2.VOLUME_FORMAT_RAW


@pytest.fixture
def pool(tmp_path):
    return tmp_path / "pool"


@pytest.fixture
def wire(tmp_path, pool):
    server = Server(tmp_path / "state", config=f'[pools.p]\nkind = "directory"\npath = "{pool}"\ntrash_seconds = 3600\n').start()
    try:
        with Wire(server.address) as opened:
            yield opened
    finally:
        server.stop()


def foreign(wire):
    return list(wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/p"), timeout=20).foreign)


def adopt(wire, locator, name, form):
    request = volume_pb2.AdoptVolumeRequest(pool="pools/p", locator=locator, volume_id=name, format=form)
    return wire.volumes.AdoptVolume(request, timeout=20).volume


def test_a_foreign_file_is_listed_and_adopted(wire, pool):
    (pool / "old.raw").write_bytes(b"data" + bytes(MIB - 4))
    (found,) = foreign(wire)
    assert (found.locator, found.size_bytes, found.format) == ("old.raw", MIB, "raw")
    volume = adopt(wire, "old.raw", "new", RAW)
    assert volume.size_bytes == MIB
    assert next(pool.glob("volumes/new.*/0000.raw")).read_bytes()[:4] == b"data"
    assert foreign(wire) == []


def test_a_deleted_volume_is_listed_and_comes_back(wire):
    made = wire.volumes.CreateVolume(
        volume_pb2.CreateVolumeRequest(pool="pools/p", volume_id="a", size_bytes=MIB, format=QCOW2), timeout=20
    ).volume
    wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=made.name), timeout=20)
    (found,) = foreign(wire)
    assert "volume a, deleted" in found.reason
    back = adopt(wire, found.locator, "a", QCOW2)
    assert back.name == made.name
    assert back.uid != made.uid
    assert foreign(wire) == []
    again = refused(
        wire.volumes.AdoptVolume, volume_pb2.AdoptVolumeRequest(pool="pools/p", locator=found.locator, volume_id="b", format=QCOW2)
    )
    assert again.code == "NOT_FOUND"
