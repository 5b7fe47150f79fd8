"""CreateVolume, DeleteVolume and ExpandVolume beside the bare file operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.bench.bench import GIB, Bench
from tests.bench.measure import Pairs, Row, interleave
from tests.bench.native import NativePool
from volgate.v1 import volume_pb2
from volgate_client import Client

KINDS = {"raw": volume_pb2.VOLUME_FORMAT_RAW, "qcow2": volume_pb2.VOLUME_FORMAT_QCOW2}
POOL = "pools/default"


class Ours:
    """The calls, by short names."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str, kind: str, size: int) -> volume_pb2.Volume:
        request = volume_pb2.CreateVolumeRequest(pool=POOL, volume_id=name, size_bytes=size, format=KINDS[kind])
        return self._client.call(self._client.volumes.CreateVolume, request).volume

    def delete(self, name: str) -> None:
        self._client.call(self._client.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=f"{POOL}/volumes/{name}"))

    def expand(self, name: str, size: int) -> None:
        request = volume_pb2.ExpandVolumeRequest(name=f"{POOL}/volumes/{name}", size_bytes=size)
        self._client.call(self._client.volumes.ExpandVolume, request)


def _sides(bench: Bench, name: str) -> tuple[Ours, NativePool]:
    """Both sides; the reference writes a tag that ours has written."""
    ours = Ours(bench.client())
    ours.create(f"{name}-tag", "qcow2", GIB)
    tag = next(bench.pool.glob(f"volumes/{name}-tag.*/volume.json")).read_bytes()
    ours.delete(f"{name}-tag")
    return ours, NativePool(bench.place(f"native-{name}"), tag)


def create(bench: Bench) -> list[Row]:
    """Rows of CreateVolume."""
    ours, native = _sides(bench, "create")

    def both(kind: str, rounds: Iterator[int]) -> Pairs:
        return interleave(
            rounds, lambda n: ours.create(f"create-{kind}-{n}", kind, GIB), lambda n: native.create(f"create-{kind}-{n}", kind, GIB)
        )

    return both("raw", bench.rounds(200)).rows("create raw") + both("qcow2", bench.rounds(100)).rows("create qcow2")


def delete(bench: Bench) -> list[Row]:
    """Rows of DeleteVolume."""
    ours, native = _sides(bench, "delete")
    pairs = Pairs()
    for number in bench.rounds(200):
        name = f"delete-{number}"
        ours.create(name, "raw", GIB)
        native.create(name, "raw", GIB)
        with pairs.our_turn():
            ours.delete(name)
        with pairs.their_turn():
            native.delete(name)
    return pairs.rows("delete")


def expand(bench: Bench) -> list[Row]:
    """Rows of ExpandVolume: one volume of each format grows by 1 GiB a round."""
    ours, native = _sides(bench, "expand")

    def both(kind: str, rounds: Iterator[int]) -> Pairs:
        name = f"expand-{kind}"
        ours.create(name, kind, GIB)
        native.create(name, kind, GIB)
        return interleave(rounds, lambda n: ours.expand(name, (n + 2) * GIB), lambda n: native.expand(name, kind, (n + 2) * GIB))

    return both("raw", bench.rounds(100)).rows("expand raw") + both("qcow2", bench.rounds(60)).rows("expand qcow2")


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"create": create, "delete": delete, "expand": expand}
