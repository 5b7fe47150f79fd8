"""Calls of the contract about a pool on Ceph, each with what must be there before, and what must be true after its answer."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rbd

from tests.edge.server import Server
from tests.edge.wire import Wire
from tests.labs.ceph import CephCluster
from tests.plugins.ceph_rig import CHUNK, MIB, OURS
from volgate.v1 import attachment_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2
from volgate_client import Client
from volgate_client.errors import NotFound

__all__ = ["ANSWER_SECONDS", "DEEDS", "Deed", "Place", "Sent"]

ANSWER_SECONDS = 60.0  # the caller's deadline: shortly before it the gateway says that the operation still runs
SIZE = 2 * CHUNK
RAW = volume_pb2.VOLUME_FORMAT_RAW
DONE = operation_pb2.OPERATION_STATE_DONE
_numbers = itertools.count(1)


class Place:
    """A gateway with a pool on a cluster, and a look at what lies there past the gateway."""

    def __init__(self, cluster: CephCluster, folder: Path, **more: Any) -> None:
        self.cluster, self.folder, self.namespace = cluster, folder, cluster.new_namespace()
        (folder / "near").mkdir()
        limits = '[limits]\ncheck_seconds = 0.5\nscan_seconds = 3600\n[hosts.lab]\nuri = "test:///default"\n'
        allowed = "".join(f'[{name}]\nallowed_directories = ["{folder}"]\n' for name in ("exports", "imports"))
        near = f'[pools.near]\nkind = "directory"\npath = "{folder}/near"\n'
        config = limits + allowed + near + cluster.toml("rbd", namespace=self.namespace, **more)
        self.server = Server(folder / "state", config=config).start()
        self.wire = Wire(self.server.address)
        self.client: Client = self.server.client(timeout=ANSWER_SECONDS)

    def close(self) -> None:
        self.client.close()
        self.wire.channel.close()
        self.server.stop()

    def volume(self, *, filled: bool = True) -> volume_pb2.Volume:
        """A new one, with a pattern at its beginning and in its second object."""
        made = self.client.create_volume("pools/rbd", f"v{next(_numbers)}", size_bytes=SIZE)
        if filled:
            self.write(made, b"a")
        return made

    def write(self, volume: volume_pb2.Volume, letter: bytes) -> None:
        with self.image(volume) as image:
            for offset in (0, CHUNK):
                image.write(letter * 4096, offset)

    def letters(self, volume: volume_pb2.Volume) -> bytes:
        """The first letter of each object, all of whose pattern is whole."""
        with self.image(volume, read_only=True) as image:
            read = [bytes(image.read(offset, 4096)) for offset in (0, CHUNK)]
        assert all(one == one[:1] * 4096 for one in read)
        return b"".join(one[:1] for one in read)

    @contextlib.contextmanager
    def image(self, volume: volume_pb2.Volume, *, read_only: bool = False) -> Iterator[rbd.Image]:
        """Its image, past the gateway."""
        name = f"{volume.name.rpartition('/')[2]}.{volume.uid[:8]}"
        with self.cluster.ioctx(self.namespace) as ioctx, rbd.Image(ioctx, name, read_only=read_only) as image:
            yield image

    def cuts(self, volume: volume_pb2.Volume) -> int:
        """How many snapshots its image has."""
        with self.image(volume, read_only=True) as image:
            return len(list(image.list_snaps()))

    def unfinished(self) -> list[str]:
        """Operations that have not ended."""
        return [f"{one.method} {one.target} {one.error_message}" for one in self.client.list_operations(unfinished_only=True)]

    def empty(self) -> None:
        """Delete every volume with its snapshots."""
        for volume in list(self.client.list_volumes("pools/rbd")):
            for cut in list(self.client.list_snapshots(volume.name)):
                self.client.delete_snapshot(cut.name)
            self.client.delete_volume(volume.name)

    def left(self) -> list[str]:
        """What lies in the namespace: images, the trash, groups, notes, objects of images; and operations that have not ended."""
        with self.cluster.ioctx(self.namespace) as ioctx:
            images = [f"image {name}" for name in rbd.RBD().list(ioctx)]
            trash = [f"trash {entry['name']}" for entry in rbd.RBD().trash_list(ioctx)]
            groups = [f"group {name}" for name in rbd.RBD().group_list(ioctx)]
            rows = [f"row {key}" for key in self.cluster.rows(ioctx, "volgate.pool") if not key.startswith(OURS)]
            kept = [one.key for one in ioctx.list_objects()]
            directory = [
                f"{name} {key}" for name in ("rbd_directory", "rbd_children") for key in self.cluster.rows(ioctx, name) if key != "state"
            ]
        shared = ("volgate.pool", "rbd_directory", "rbd_children", "rbd_info", "rbd_trash", "rbd_group_directory")
        return [*images, *trash, *groups, *rows, *directory, *(key for key in kept if key not in shared), *self.unfinished()]


@dataclass
class Sent:
    """A call that may be repeated. `check` looks whether its effect is there, whole; `unchanged`: whether nothing was done."""

    call: Callable[[], object]
    check: Callable[[], None]
    unchanged: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Deed:
    """A call of the contract, and how it is prepared."""

    name: str
    prepare: Callable[[Place], Sent]

    def __str__(self) -> str:
        return self.name


def _unary(method: Callable[..., Any], request: Any) -> Callable[[], Any]:
    """A call; while the answer is an operation that runs, it is repeated, and joins it."""

    def call() -> Any:
        deadline = time.monotonic() + ANSWER_SECONDS
        while _runs(answer := method(request, timeout=_left(deadline))):
            time.sleep(0.1)
        return answer

    return call


def _runs(answer: Any) -> bool:
    known = "operation" in answer.DESCRIPTOR.fields_by_name and answer.HasField("operation")
    return known and answer.operation.state != DONE


def _create(place: Place, source: str = "", expected: bytes = b"\0\0") -> Sent:
    name = f"v{next(_numbers)}"
    request = volume_pb2.CreateVolumeRequest(pool="pools/rbd", volume_id=name, size_bytes=SIZE, source=source)

    def check() -> None:
        assert place.letters(place.client.get_volume(f"pools/rbd/volumes/{name}", refresh=True)) == expected

    return Sent(_unary(place.wire.volumes.CreateVolume, request), check, lambda: _absent(place, name))


def _absent(place: Place, name: str) -> None:
    with place.cluster.ioctx(place.namespace) as ioctx:
        assert not [image for image in rbd.RBD().list(ioctx) if image.startswith(f"{name}.")]
    with pytest.raises(NotFound):
        place.client.get_volume(f"pools/rbd/volumes/{name}", refresh=True)


def _clone_snapshot(place: Place) -> Sent:
    made = place.volume()
    cut = place.client.create_snapshot(made.name, "s")
    place.write(made, b"b")
    return _create(place, cut.name, b"aa")


def _clone_volume(place: Place) -> Sent:
    return _create(place, place.volume().name, b"aa")


def _delete(place: Place) -> Sent:
    made = place.volume()

    def unchanged() -> None:
        assert place.letters(place.client.get_volume(made.name, refresh=True)) == b"aa"

    request = volume_pb2.DeleteVolumeRequest(name=made.name, uid=made.uid, request_id=str(uuid.uuid4()))
    return Sent(_unary(place.wire.volumes.DeleteVolume, request), lambda: _absent(place, made.name.rpartition("/")[2]), unchanged)


def _expand(place: Place) -> Sent:
    made = place.volume()

    def sized(size: int) -> None:
        found = place.client.get_volume(made.name, refresh=True)
        assert (found.size_bytes, place.letters(made)) == (size, b"aa"), found

    request = volume_pb2.ExpandVolumeRequest(name=made.name, size_bytes=2 * SIZE)
    return Sent(_unary(place.wire.volumes.ExpandVolume, request), lambda: sized(2 * SIZE), lambda: sized(SIZE))


def _snapshot(place: Place) -> Sent:
    made = place.volume()

    def check() -> None:
        (cut,) = place.client.list_snapshots(made.name)
        place.write(made, b"b")
        assert cut.size_bytes == SIZE and place.cuts(made) == 1
        assert place.letters(place.client.create_volume("pools/rbd", f"v{next(_numbers)}", size_bytes=SIZE, source=cut.name)) == b"aa"

    def unchanged() -> None:
        assert place.cuts(made) == 0

    request = snapshot_pb2.CreateSnapshotRequest(volume=made.name, snapshot_id="s")
    return Sent(_unary(place.wire.snapshots.CreateSnapshot, request), check, unchanged)


def _unsnapshot(place: Place) -> Sent:
    made = place.volume()
    cuts = [place.client.create_snapshot(made.name, name) for name in ("kept", "gone")]

    def counted(names: Sequence[str]) -> None:
        found = [one.name for one in place.client.list_snapshots(made.name)]
        assert (found, place.cuts(made)) == (list(names), len(names)), (found, place.cuts(made))

    request = snapshot_pb2.DeleteSnapshotRequest(name=cuts[1].name, uid=cuts[1].uid, request_id=str(uuid.uuid4()))
    call = _unary(place.wire.snapshots.DeleteSnapshot, request)
    return Sent(call, lambda: counted([cuts[0].name]), lambda: counted(sorted(cut.name for cut in cuts)))


def _revert(place: Place) -> Sent:
    made = place.volume()
    cut = place.client.create_snapshot(made.name, "s")
    place.write(made, b"b")

    def holds(letters: bytes) -> None:
        assert place.letters(made) == letters and place.cuts(made) == 1

    request = volume_pb2.RevertVolumeRequest(name=made.name, snapshot=cut.name, request_id=str(uuid.uuid4()))
    return Sent(_unary(place.wire.volumes.RevertVolume, request), lambda: holds(b"aa"), lambda: holds(b"bb"))


def _group(place: Place) -> Sent:
    volumes = [place.volume() for _ in range(2)]

    def counted(number: int) -> None:
        assert [place.cuts(volume) for volume in volumes] == [number, number]

    names = {volume.name.rpartition("/")[2]: "s" for volume in volumes}
    request = snapshot_pb2.CreateSnapshotGroupRequest(pool="pools/rbd", snapshots=names, request_id=str(uuid.uuid4()))
    return Sent(_unary(place.wire.snapshots.CreateSnapshotGroup, request), lambda: counted(1), lambda: counted(0))


def _import(place: Place) -> Sent:
    name, path = f"v{next(_numbers)}", place.folder / f"in{next(_numbers)}"
    path.write_bytes((b"i" * 4096).ljust(CHUNK, b"\0") * 2)
    header = volume_pb2.ImportHeader(pool="pools/rbd", volume_id=name, source_format=RAW, path=str(path), request_id=str(uuid.uuid4()))

    def send(request: volume_pb2.ImportVolumeRequest, timeout: float) -> Any:
        return place.wire.volumes.ImportVolume(iter([request]), timeout=timeout)

    def check() -> None:
        assert place.letters(place.client.get_volume(f"pools/rbd/volumes/{name}", refresh=True)) == b"ii"

    return Sent(_unary(send, volume_pb2.ImportVolumeRequest(header=header)), check, lambda: _absent(place, name))


def _export(place: Place) -> Sent:
    made, path = place.volume(), place.folder / f"out{next(_numbers)}"
    request = volume_pb2.ExportVolumeRequest(name=made.name, format=RAW, path=str(path), request_id=str(uuid.uuid4()))

    def send(request: volume_pb2.ExportVolumeRequest, timeout: float) -> Any:
        return list(place.wire.volumes.ExportVolume(request, timeout=timeout))[-1]

    def check() -> None:
        assert path.stat().st_size == SIZE and path.read_bytes()[:4096] == b"a" * 4096

    def unchanged() -> None:
        assert not path.exists()

    return Sent(_unary(send, request), check, unchanged)


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())


def _get(place: Place) -> Sent:
    made = place.volume(filled=False)
    return Sent(_unary(place.wire.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=made.name, refresh=True)), lambda: None)


def _changed(place: Place) -> Sent:
    made = place.volume()
    cut = place.client.create_snapshot(made.name, "s")
    place.write(made, b"b")
    request = volume_pb2.ListChangedBlocksRequest(name=made.name, base_snapshot=cut.name)
    call = _unary(place.wire.volumes.ListChangedBlocks, request)

    def check() -> None:
        assert sum(extent.length for extent in call().extents) >= 2 * 4096

    return Sent(call, check)


def _capacity(place: Place) -> Sent:
    call = _unary(place.wire.pools.GetPool, pool_pb2.GetPoolRequest(name="pools/rbd"))

    def check() -> None:
        pool = call().pool
        assert pool.health == pool_pb2.POOL_HEALTH_OK and pool.total_bytes > MIB, pool

    return Sent(call, check)


def _paths(place: Place) -> Sent:
    made = place.volume(filled=False)
    return Sent(_unary(place.wire.attachments.ListPaths, attachment_pb2.ListPathsRequest(name=made.name)), lambda: None)


DEEDS = (
    Deed("create", _create),
    Deed("clone-snapshot", _clone_snapshot),
    Deed("clone-volume", _clone_volume),
    Deed("delete", _delete),
    Deed("expand", _expand),
    Deed("snapshot", _snapshot),
    Deed("unsnapshot", _unsnapshot),
    Deed("revert", _revert),
    Deed("group", _group),
    Deed("import", _import),
    Deed("export", _export),
    Deed("get", _get),
    Deed("changed-blocks", _changed),
    Deed("capacity", _capacity),
    Deed("paths", _paths),
)
