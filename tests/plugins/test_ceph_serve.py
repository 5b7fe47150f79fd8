"""A Ceph pool below a real gateway: images in and out, an OSD that hangs, and a key that nobody ever sees."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import rbd

from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from tests.labs.ceph import CephCluster
from tests.plugins.ceph_rig import CHUNK, MIB, until
from volgate.v1 import pool_pb2, snapshot_pb2, volume_pb2
from volgate_client import Client
from volgate_client.errors import VolgateError

LIMITS = '[limits]\ncheck_seconds = 0.5\nscan_seconds = 3600\n[hosts.lab]\nuri = "test:///default"\n'
RAW, QCOW2 = volume_pb2.VOLUME_FORMAT_RAW, volume_pb2.VOLUME_FORMAT_QCOW2
VOLUME = "pools/rbd/volumes/a"


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephCluster]:
    """A cluster of this module, which keeps its data: an OSD that was stopped is started anew if it does not go on by itself."""
    with CephCluster(store="bluestore") as running:
        yield running


@pytest.fixture
def server(ceph: CephCluster, tmp_path: Path) -> Iterator[Server]:
    exports = f'[exports]\nallowed_directories = ["{tmp_path}"]\n'
    table = ceph.toml("rbd", namespace=ceph.new_namespace(), operation_seconds=3.0, connect_seconds=3.0)
    made = Server(tmp_path / "state", config=LIMITS + exports + table).start()
    yield made
    made.stop()
    assert "Traceback" not in made.log.read_text()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client(timeout=30.0) as opened:
        yield opened


def image(path: Path, size: int = 3 * CHUNK) -> bytes:
    """A sparse raw file with data at its beginning, across the end of an object, and at its end."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in (0, CHUNK - 4096, size - 4096):
            file.seek(offset)
            file.write(os.urandom(4096 if offset != CHUNK - 4096 else 8192))
    return path.read_bytes()


def imported(client: Client, path: Path, name: str, form: int) -> volume_pb2.Volume:
    header = volume_pb2.ImportHeader(pool="pools/rbd", volume_id=name, source_format=form)
    return client.import_file(header, path)


def test_images_come_in_and_go_out_in_each_format_by_stream_and_by_path(client: Client, tmp_path: Path):
    content = image(tmp_path / "raw")
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", tmp_path / "raw", tmp_path / "packed"], check=True)
    for name, path, form in (("a", "raw", RAW), ("b", "packed", QCOW2)):
        made = imported(client, tmp_path / path, name, form)
        assert made.size_bytes == len(content)
        cut = client.create_snapshot(made.name, "s")
        for number, source in enumerate((made.name, cut.name)):
            for wanted, word in ((RAW, "raw"), (QCOW2, "qcow2")):
                streamed, written = tmp_path / f"{name}{number}{word}", tmp_path / f"{name}{number}{word}.path"
                client.export_file(volume_pb2.ExportVolumeRequest(name=source, format=wanted), streamed)
                client.export_on_server(volume_pb2.ExportVolumeRequest(name=source, format=wanted, path=str(written)))
                for found in (streamed, written):
                    subprocess.run(["qemu-img", "compare", "-F", word, tmp_path / "raw", found], check=True, stdout=subprocess.DEVNULL)
        assert (tmp_path / f"{name}0raw").stat().st_blocks * 512 < MIB
        assert (tmp_path / f"{name}0raw").read_bytes() == content
    assert not list((tmp_path / "state" / "spool").iterdir())


def test_a_snapshot_is_of_what_is_there_and_not_of_what_the_index_knows(ceph: CephCluster, client: Client, server: Server):
    made = client.create_volume("pools/rbd", "a", size_bytes=MIB)
    cut = client.create_snapshot(VOLUME, "s", labels={"day": "monday"})
    assert client.create_snapshot(VOLUME, "s", labels={"day": "monday"}) == cut, "the repeat is answered, the storage has it"
    with pytest.raises(VolgateError) as refusal:
        client.create_snapshot(VOLUME, "s", labels={"day": "tuesday"})
    assert refusal.value.reason == "EXISTS_DIFFERENT" and "monday" in refusal.value.message
    client.delete_snapshot(cut.name)
    with ceph.ioctx(namespace_of(server)) as ioctx:
        rbd.RBD().remove(ioctx, f"a.{made.uid[:8]}")
    assert client.get_volume(VOLUME).uid == made.uid, "nobody has told the index"
    with pytest.raises(VolgateError) as refusal:
        client.create_snapshot(VOLUME, "again")
    assert refusal.value.reason == "NOT_FOUND"


def namespace_of(server: Server) -> str:
    return str(tomllib.loads(server.config.read_text())["pools"]["rbd"]["namespace"])


def test_a_hung_osd_is_told_by_the_deadline_and_the_repeat_joins(ceph: CephCluster, server: Server, client: Client):
    made = client.create_volume("pools/rbd", "a", size_bytes=MIB)
    ceph.freeze("osd.0")
    try:
        with Wire(server.address) as wire:
            create = volume_pb2.CreateVolumeRequest(pool="pools/rbd", volume_id="b", size_bytes=MIB)
            cut = snapshot_pb2.CreateSnapshotRequest(volume=made.name, snapshot_id="s")
            for method, request in ((wire.volumes.CreateVolume, create), (wire.snapshots.CreateSnapshot, cut)):
                began = time.monotonic()
                told = refused(method, request, timeout=60)
                assert told.code in ("UNAVAILABLE", "ABORTED") and time.monotonic() - began < 50, told
        until(lambda: client.get_pool("pools/rbd").health == pool_pb2.POOL_HEALTH_DOWN)
        assert client.get_pool("pools/rbd").problem
        assert client.get_volume(made.name).uid == made.uid, "the index answers"
    finally:
        ceph.thaw("osd.0")
    try:
        until(lambda: client.get_pool("pools/rbd").health == pool_pb2.POOL_HEALTH_OK, 40)
    except AssertionError:  # seen once in many runs: the OSD keeps some of what is written for minutes
        ceph.restart("osd.0")
        until(lambda: client.get_pool("pools/rbd").health == pool_pb2.POOL_HEALTH_OK)
    assert until(lambda: _done(lambda: client.create_volume("pools/rbd", "b", size_bytes=MIB))).size_bytes == MIB
    assert until(lambda: _done(lambda: client.create_snapshot(made.name, "s"))).size_bytes == MIB


def _done(call):
    try:
        return call()
    except VolgateError as error:
        assert error.code in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"), error
        time.sleep(0.2)
        return None


def test_the_key_is_in_no_log_argument_environment_error_or_database(ceph: CephCluster, server: Server, client: Client, tmp_path: Path):
    key = ceph.key_file.read_text().encode()
    content = image(tmp_path / "raw", CHUNK)
    made = imported(client, tmp_path / "raw", "a", RAW)
    client.delete_snapshot(client.create_snapshot(made.name, "s").name)
    told = [str(client.get_pool("pools/rbd")), str(made)]
    for wrong in ("pools/rbd/volumes/missing", "pools/rbd/volumes/a/snapshots/missing"):
        with pytest.raises(VolgateError) as caught:
            client.export_file(volume_pb2.ExportVolumeRequest(name=wrong), tmp_path / "out")
        told.append(repr(vars(caught.value)))
    seen = [text.encode() for text in told]
    for process in (server.process.pid, *_below(server.process.pid)):
        for part in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                seen.append(Path(f"/proc/{process}/{part}").read_bytes())
    server.stop()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert content and len(seen) > 6 and len(files) > 3
    seen += [path.read_bytes() for path in files]
    assert not [text[:200] for text in seen if key in text]


def _below(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, left = list[int](), [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found
