"""GetVolume and ListVolumes of an index of 10,000 volumes beside a bare grpc.aio server that sends the same messages."""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.bench import GIB, MIB, Bench
from tests.bench.measure import MS, Row, interleave
from tests.bench.processes import family, running, until_answered
from tests.edge.server import Server
from volgate.backend import tag_of
from volgate.model import Format, VolumeSpec
from volgate.names import object_name
from volgate.v1 import volume_pb2
from volgate_client import Client
from volgate_plugins.directory.manifest import Content, Layer, Manifest

VOLUMES = 10_000
PAGE = 500
POOL = "pools/default"


def populate(pool: Path, instance: str, count: int) -> None:
    """Put volumes into a pool as the plugin would, without its fsyncs: 10,000 creations would take minutes."""
    for number in range(count):
        spec = VolumeSpec(
            name=f"volume-{number:05d}", uid=str(uuid.uuid4()), size=GIB, format=Format.RAW, labels={"tenant": f"t{number % 50}"}
        )
        folder = pool / "volumes" / object_name(spec.name, spec.uid)
        folder.mkdir()
        (folder / "0000.raw").touch(0o600)
        os.truncate(folder / "0000.raw", GIB)
        content = Content(layers=(Layer("0000.raw"),), active="0000.raw", promised=GIB)
        (folder / "volume.json").write_bytes(Manifest(tag_of(spec, instance, time.time()), content).encode())


def await_index(client: Client, count: int, timeout: float = 120.0) -> None:
    """Wait until the gateway's own scan has put all volumes into its index."""
    deadline = time.monotonic() + timeout
    while True:
        request = volume_pb2.ListVolumesRequest(pool=POOL, page_size=1000)
        found = sum(1 for _ in client.pages(client.volumes.ListVolumes, request, "volumes"))
        if found >= count:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"the index has {found} of {count} volumes after {timeout} s")
        time.sleep(0.5)


@contextmanager
def full_gateway(bench: Bench, count: int) -> Iterator[Server]:
    """Serve a pool of `count` volumes whose index is complete."""
    with bench.serving("reads") as server:
        server.stop()
        populate(server.state / "pools/default", (server.state / "instance").read_text().strip(), count)
        server.start(60.0)
        with server.client() as client:
            await_index(client, count)
        yield server


@contextmanager
def echo(bench: Bench, get: bytes, page: bytes) -> Iterator[Client]:
    """Run the reference, loaded with real answers."""
    folder = bench.place("echo")
    (folder / "get").write_bytes(get)
    (folder / "list").write_bytes(page)
    arguments = ["tests.bench.echo", str(folder / "socket"), str(folder / "get"), str(folder / "list")]
    with running(arguments, folder / "log"), Client(f"unix:{folder}/socket") as client:
        until_answered(folder / "socket", lambda: client.volumes.GetVolume(volume_pb2.GetVolumeRequest(), timeout=5))
        yield client


def reads(bench: Bench) -> list[Row]:
    """Rows of GetVolume and ListVolumes."""
    count = bench.scaled(VOLUMES, least=PAGE + 1)
    listing = volume_pb2.ListVolumesRequest(pool=POOL, page_size=PAGE)
    with full_gateway(bench, count) as server, server.client() as ours:
        one = volume_pb2.GetVolumeRequest(name=f"{POOL}/volumes/volume-00007")
        get, page = ours.volumes.GetVolume(one), ours.volumes.ListVolumes(listing)
        if len(page.volumes) != PAGE or not page.next_page_token:
            raise RuntimeError(f"the first page holds {len(page.volumes)} volumes")
        with echo(bench, get.SerializeToString(), page.SerializeToString()) as theirs:
            gets = interleave(bench.rounds(1500), lambda _: ours.volumes.GetVolume(one), lambda _: theirs.volumes.GetVolume(one))
            lists = interleave(
                bench.rounds(300), lambda _: ours.volumes.ListVolumes(listing), lambda _: theirs.volumes.ListVolumes(listing)
            )
            after = [_after_a_change(ours, listing, number) for number in bench.rounds(50)]
        assert server.process
        weight = Row("PSS with 10,000 volumes", sum(family(server.process.pid).values()) / MIB)
    changed = Row("list after a change p50", statistics.median(after) * MS)
    return [*gets.rows("get"), *lists.rows("list"), changed, weight]


def _after_a_change(client: Client, listing: volume_pb2.ListVolumesRequest, number: int) -> float:
    """Time a page that no kept answer serves: the label of one volume of it has just changed."""
    labels = {"round": str(number)}
    client.call(client.volumes.UpdateVolume, volume_pb2.UpdateVolumeRequest(name=f"{POOL}/volumes/volume-00001", labels=labels))
    began = time.perf_counter()
    page = client.volumes.ListVolumes(listing)
    duration = time.perf_counter() - began
    if page.volumes[1].labels != labels:
        raise RuntimeError(f"the page shows {page.volumes[1].labels} after {labels} was written")
    return duration


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"read": reads}
