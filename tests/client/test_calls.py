"""Calls, pages, waits, images and errors against a real gateway."""

import asyncio
import os
import threading

import pytest

from volgate.v1 import operation_pb2, pool_pb2, volume_pb2
from volgate_client import AsyncClient, errors
from volgate_client.words import number, word, words

MIB = 1 << 20
POOL = "pools/default"


def header(identifier, **fields):
    return volume_pb2.ImportHeader(pool=POOL, volume_id=identifier, source_format=volume_pb2.VOLUME_FORMAT_RAW, **fields)


def test_a_volumes_life_in_the_sync_client(client):
    made = client.create_volume(POOL, "life", size_bytes=MIB, format="qcow2", labels={"a": "b"})
    assert (made.size_bytes, dict(made.labels), word(volume_pb2.VolumeFormat, made.format)) == (MIB, {"a": "b"}, "qcow2")
    assert client.create_volume(POOL, "life", size_bytes=MIB, format="qcow2", labels={"a": "b"}).uid == made.uid, "a repeat"
    assert client.create_snapshot(made.name, "s1").size_bytes == MIB
    assert client.expand_volume(made.name, 2 * MIB).size_bytes == 2 * MIB
    assert client.revert_volume(made.name, "s1").size_bytes == MIB
    assert dict(client.update_volume(made.name, {"c": "d"}).labels) == {"c": "d"}
    assert [s.name for s in client.list_snapshots(made.name)] == [f"{made.name}/snapshots/s1"]
    copy = client.create_volume(POOL, "life-copy", source=f"{made.name}/snapshots/s1")
    assert copy.source.endswith("/snapshots/s1")
    client.delete_volume(copy.name)
    client.delete_snapshot(f"{made.name}/snapshots/s1")
    client.delete_volume(made.name)
    with pytest.raises(errors.NotFound):
        client.get_volume(made.name)


async def test_a_volumes_life_in_the_async_client(server):
    async with AsyncClient(server.address) as client:
        made = await client.create_volume(POOL, "alife", size_bytes=MIB, format="qcow2")
        assert (await client.create_snapshot(made.name, "s1")).uid
        assert (await client.revert_volume(made.name, "s1")).uid == made.uid
        assert [s.name async for s in client.list_snapshots(made.name)] == [f"{made.name}/snapshots/s1"]
        with pytest.raises(errors.InUse) as raised:
            await client.delete_volume(made.name)
        assert [(h.kind, h.name) for h in raised.value.holders] == [("snapshot", "s1")]
        await client.delete_snapshot(f"{made.name}/snapshots/s1")
        await client.delete_volume(made.name)


async def test_twenty_async_calls_at_once_share_one_connection(server):
    async with AsyncClient(server.address) as client:
        made = await asyncio.gather(*(client.create_volume(POOL, f"many-{n}", size_bytes=MIB) for n in range(20)))
        assert len({volume.uid for volume in made}) == 20
        await asyncio.gather(*(client.delete_volume(volume.name) for volume in made))


def test_iterators_go_through_every_page(client):
    names = [client.create_volume(POOL, f"page-{n}", size_bytes=MIB).name for n in range(7)]
    listed = [v.name for v in client.list_volumes(POOL, page_size=2) if "/page-" in v.name]
    assert listed == names
    assert [p.name for p in client.list_pools()] == [POOL]
    assert len(list(client.list_operations(page_size=3))) >= 7
    for name in names:
        client.delete_volume(name)


def test_errors_name_the_field_and_the_holder(client):
    with pytest.raises(errors.InvalidRequest) as raised:
        client.create_volume(POOL, "UPPER", size_bytes=MIB)
    assert raised.value.field == "volume_id"
    with pytest.raises(errors.InvalidRequest, match="'tiff' is not one of raw, qcow2, vmdk, vhdx"):
        client.create_volume(POOL, "x", size_bytes=MIB, format="tiff")
    client.create_volume(POOL, "taken", size_bytes=MIB)
    with pytest.raises(errors.AlreadyExists) as differs:
        client.create_volume(POOL, "taken", size_bytes=2 * MIB)
    assert differs.value.reason == "EXISTS_DIFFERENT"
    with pytest.raises(errors.InvalidRequest) as reused:
        client.delete_volume(f"{POOL}/volumes/taken", request_id="one")
        client.expand_volume(f"{POOL}/volumes/taken", 2 * MIB, request_id="one")
    assert reused.value.reason == "REQUEST_ID_REUSED"


def test_a_plan_changes_nothing(client):
    request = volume_pb2.CreateVolumeRequest(pool=POOL, volume_id="planned", size_bytes=MIB)
    assert client.plan(client.volumes.CreateVolume, request).steps
    assert not request.validate_only
    with pytest.raises(errors.NotFound):
        client.get_volume(f"{POOL}/volumes/planned")


def test_a_failed_operation_raises_its_own_error_from_wait(client):
    client.create_volume(POOL, "held", size_bytes=MIB, format="qcow2")
    client.create_snapshot(f"{POOL}/volumes/held", "s")
    with pytest.raises(errors.InUse) as refused:
        client.delete_volume(f"{POOL}/volumes/held")
    with pytest.raises(errors.InUse) as waited:
        client.wait(client.get_operation(refused.value.operation))
    assert waited.value.message == refused.value.message


def test_progress_goes_up_to_the_whole_in_both_directions(client, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 * MIB) + bytes(2 * MIB) + b"x")
    up, down = [], []
    volume = client.import_file(header("progress"), image, progress=lambda *p: up.append(p))
    assert [done for done, _ in up] == sorted(done for done, _ in up)
    assert up[-1] == (5 * MIB + 1, 5 * MIB + 1)
    request = volume_pb2.ExportVolumeRequest(name=volume.name)
    size = client.export_file(request, tmp_path / "back", progress=lambda *p: down.append(p))
    assert size == volume.size_bytes
    assert (tmp_path / "back").read_bytes()[: 5 * MIB + 1] == image.read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "back").stat().st_blocks * 512 < 4 * MIB, "zeroes are holes"
    assert [done for done, _ in down] == sorted(done for done, _ in down)
    assert {total for _, total in down} == {size}


def test_the_holes_of_an_image_are_not_sent(client, tmp_path):
    """Sixty gigabytes would take a minute and more."""
    image, told, data = tmp_path / "image", [], os.urandom(MIB)
    with image.open("wb") as stream:
        for offset in (0, 40 << 30, (60 << 30) - MIB):
            os.pwrite(stream.fileno(), data, offset)
    volume = client.import_file(header("sparse"), image, progress=lambda *p: told.append(p), timeout=30)
    assert (volume.size_bytes, told[-1]) == (60 << 30, (60 << 30, 60 << 30))
    assert volume.allocated_bytes < 16 * MIB
    client.export_file(volume_pb2.ExportVolumeRequest(name=volume.name), tmp_path / "back", timeout=30)
    with (tmp_path / "back").open("rb") as back:
        assert [os.pread(back.fileno(), MIB, offset) == data for offset in (0, 40 << 30, (60 << 30) - MIB, 20 << 30)] == [
            True,
            True,
            True,
            False,
        ]


def test_a_file_on_the_server_is_waited_for_and_its_progress_told(client, server, tmp_path):
    image, told = tmp_path / "image", []
    image.write_bytes(os.urandom(MIB))
    volume = client.import_file(header("on-server"), image)
    path = server.state.parent / "exports" / "on-server"
    request = volume_pb2.ExportVolumeRequest(name=volume.name, path=str(path))
    assert client.export_on_server(request, progress=told.append) == MIB
    assert path.read_bytes() == image.read_bytes()
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert request.request_id == "", "the caller's own message stays as it is"
    with pytest.raises(errors.AlreadyExists):
        client.export_on_server(request)


class Stop(Exception):
    pass


def stopping(done, _total):
    if done > MIB:
        raise Stop


def clean(server, folder):
    spool = server.state / "spool"
    return list(spool.iterdir()) == [] and not [p for p in folder.iterdir() if p.name.endswith(".partial")]


async def eventually_clean(server, folder):
    for _ in range(100):
        if clean(server, folder):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_what_a_progress_callback_raises_ends_a_transfer_cleanly(server, client, tmp_path, capfd):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(4 * MIB))
    volume = client.import_file(header("stopped"), image)
    with pytest.raises(Stop):
        client.import_file(header("never"), image, progress=stopping)
    with pytest.raises(Stop):
        client.export_file(volume_pb2.ExportVolumeRequest(name=volume.name), tmp_path / "back", progress=stopping)
    async with AsyncClient(server.address) as aio:
        with pytest.raises(Stop):
            await aio.import_file(header("never"), image, progress=stopping)
        with pytest.raises(Stop):
            await aio.export_file(volume_pb2.ExportVolumeRequest(name=volume.name), tmp_path / "back", progress=stopping)
    assert await eventually_clean(server, tmp_path)
    assert not (tmp_path / "back").exists()
    with pytest.raises(errors.NotFound):
        client.get_volume(f"{POOL}/volumes/never")
    assert capfd.readouterr().err == "", "gRPC logs no traceback of ours"


async def test_a_cancelled_task_takes_its_transfer_back(server, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    async with AsyncClient(server.address) as client:
        begun = asyncio.Event()
        task = asyncio.create_task(client.import_file(header("cancelled"), image, progress=lambda *_: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await eventually_clean(server, tmp_path)
        with pytest.raises(errors.NotFound):
            await client.get_volume(f"{POOL}/volumes/cancelled")


def test_a_refused_upload_raises_the_gateways_error(client, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    with pytest.raises(errors.InvalidRequest) as raised:
        client.import_file(volume_pb2.ImportHeader(pool=POOL, volume_id="BAD", source_format=1), image)
    assert raised.value.field == "header.volume_id"
    with pytest.raises(FileNotFoundError):
        client.import_file(header("gone"), tmp_path / "missing")


def test_an_export_never_replaces_what_is_no_file(client, tmp_path):
    client.create_volume(POOL, "tofile", size_bytes=MIB)
    request = volume_pb2.ExportVolumeRequest(name=f"{POOL}/volumes/tofile")
    (tmp_path / "pipe").mkdir()
    with pytest.raises(errors.InvalidRequest, match="no regular file"):
        client.export_file(request, tmp_path / "pipe")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(errors.InvalidRequest, match="exists"):
        client.export_file(request, tmp_path / "file", overwrite=False)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_wait_for_an_operation_that_is_not_known_ends_at_once(client):
    unfinished = operation_pb2.Operation(name="operations/" + "0" * 32, state=operation_pb2.OPERATION_STATE_RUNNING)
    with pytest.raises(errors.NotFound):
        client.wait(unfinished, timeout=5)


def test_one_client_serves_many_threads(client):
    found = []
    threads = [threading.Thread(target=lambda: found.append(client.get_pool(POOL).name)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [POOL] * 16


def test_words_of_every_enum_lead_back_to_their_values():
    for value in volume_pb2.VolumeFormat.values():
        assert number(volume_pb2.VolumeFormat, word(volume_pb2.VolumeFormat, value), "format") == value
    assert words(pool_pb2.PoolHealth) == ["ok", "degraded", "down"]
    assert word(volume_pb2.VolumeFormat, 99) == "99"
