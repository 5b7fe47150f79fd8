"""Calls that meet a gateway which dies, hangs or is not there."""

import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.soaking import count, draw
from volgate.v1 import volume_pb2
from volgate_client import AsyncClient, Client, errors

MIB = 1 << 20


@pytest.fixture
def mortal():
    top = Path(tempfile.mkdtemp(prefix="vg-client-", dir="/tmp"))
    made = Server(top / "state").start()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(top)


def operations_of(client, identifier):
    return [o for o in client.list_operations() if o.request_id == identifier]


def test_a_call_over_a_kill_and_a_restart_succeeds_once(mortal):
    rng = draw()
    for turn in range(count(3, soak=40)):
        identifier, made = f"turn-{turn}", []
        client = mortal.client(timeout=30)

        def create(client=client, identifier=identifier, made=made, turn=turn):
            made.append(client.create_volume("pools/default", f"v{turn}", size_bytes=MIB, request_id=identifier))

        caller = threading.Thread(target=create)
        caller.start()
        time.sleep(rng.uniform(0, 0.02))
        mortal.kill9()
        mortal.start()
        caller.join(30)
        assert made, "the call came back with the volume"
        assert [o.method for o in operations_of(client, identifier)] == ["CreateVolume"]
        assert client.get_volume(f"pools/default/volumes/v{turn}", refresh=True).uid == made[0].uid
        client.close()
    folders = [entry for entry in (mortal.state / "pools/default/volumes").iterdir() if entry.name.startswith("v")]
    assert len(folders) == count(3, soak=40), "one object for each volume"


def test_an_upload_over_a_kill_and_a_restart_is_whole_and_made_once(mortal, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(12 * MIB))
    killed = []

    def kill_half_way(done, total):
        if done * 2 >= total and not killed:
            killed.append(done)
            mortal.kill9()
            threading.Thread(target=mortal.start).start()

    header = volume_pb2.ImportHeader(pool="pools/default", volume_id="up", source_format=1, format=2, request_id="upload")
    with mortal.client(timeout=30) as client:
        volume = client.import_file(header, image, progress=kill_half_way)
        assert killed
        assert volume.size_bytes == 12 * MIB
        assert len(operations_of(client, "upload")) == 1
        client.export_file(volume_pb2.ExportVolumeRequest(name=volume.name), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    assert list((mortal.state / "spool").iterdir()) == []


async def test_the_async_client_downloads_over_a_kill_and_a_restart(mortal, tmp_path):
    import asyncio

    image = tmp_path / "image"
    image.write_bytes(os.urandom(24 * MIB))
    with mortal.client() as client:
        client.import_file(volume_pb2.ImportHeader(pool="pools/default", volume_id="down", source_format=1, format=1), image)
    killed = []

    def kill_early(done, _total):
        if done > MIB and not killed:
            mortal.kill9()
            killed.append(asyncio.get_running_loop().run_in_executor(None, mortal.start))

    async with AsyncClient(mortal.address, timeout=30) as client:
        request = volume_pb2.ExportVolumeRequest(name="pools/default/volumes/down")
        assert await client.export_file(request, tmp_path / "back", progress=kill_early) == 24 * MIB
    await killed[0]
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_a_gateway_that_hangs_ends_in_a_deadline_and_the_repeat_joins(mortal):
    with mortal.client(timeout=0.7) as client:
        os.kill(mortal.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded) as raised:
            client.create_volume("pools/default", "slow", size_bytes=MIB, request_id="slow")
        assert 0.6 < time.monotonic() - began < 5.0
        assert "in time; a mutation goes on" in raised.value.message
        os.kill(mortal.process.pid, signal.SIGCONT)
    with mortal.client() as client:
        volume = client.create_volume("pools/default", "slow", size_bytes=MIB, request_id="slow")
        assert len(operations_of(client, "slow")) == 1
        assert [v.uid for v in client.list_volumes()] == [volume.uid]


def test_a_transfer_gives_up_a_gateway_that_is_gone_long_before_its_own_deadline(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    began = time.monotonic()
    with Client(f"unix:{tmp_path}/nobody", timeout=0.5, long_timeout=3600) as client, pytest.raises(errors.Unavailable):
        client.import_file(volume_pb2.ImportHeader(pool="pools/p", volume_id="v", source_format=1), image)
    assert time.monotonic() - began < 10.0


def test_a_wait_goes_on_over_a_restart(mortal, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    with mortal.client(timeout=30) as client:
        client.import_file(volume_pb2.ImportHeader(pool="pools/default", volume_id="base", source_format=1, format=1), image)
        clone = volume_pb2.CreateVolumeRequest(
            pool="pools/default", volume_id="copy", source="pools/default/volumes/base", request_id="copy"
        )
        client.call(client.volumes.CreateVolume, clone)
        mortal.kill9()
        mortal.start()
        (operation,) = operations_of(client, "copy")
        assert client.wait(operation, timeout=30).error_reason == ""
        assert client.get_volume("pools/default/volumes/copy").size_bytes == 8 * MIB
