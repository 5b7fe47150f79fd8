"""Pools on a real Ceph cluster, and short words for the tests of the plugin."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import rados
import rbd

from tests.labs.ceph import POOL, CephCluster
from volgate.backend import Backend, PoolContext, SnapshotSpec, VolumeId
from volgate.model import Format, Source, SourceKind, Volume, VolumeSpec
from volgate_plugins.ceph_rbd import CephSettings, volgate_backends

MIB = 1 << 20
CHUNK = 4 << 20
OURS = ("marker", "client.")


def open_pool(settings: CephSettings, instance: str = "gateway-1", name: str = "p") -> Backend:
    return volgate_backends()[0].open(settings, PoolContext(name, instance))


def until(what: Callable[[], Any], seconds: float = 60.0, told: Callable[[], object] = lambda: "") -> Any:
    """Look until it is so; `told` is what is known when it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"it does not come: {told()}"
        time.sleep(0.05)
    return found


class Pool:
    """A backend in this process, in an RBD namespace of its own."""

    def __init__(self, cluster: CephCluster, pool: str = POOL, namespace: str = "", **more: Any) -> None:
        self.cluster, self.rados_pool = cluster, pool
        self.namespace = namespace or cluster.new_namespace(pool)
        table = {**cluster.table(pool=pool, namespace=self.namespace), **more}
        self.settings = CephSettings(**{**table, "monitors": tuple(table["monitors"])})
        self.backend = open_pool(self.settings)

    def ioctx(self):
        return self.cluster.ioctx(self.namespace, self.rados_pool)

    def reopen(self) -> None:
        self.backend.close()
        self.backend = open_pool(self.settings)

    def spec(self, name: str, size: int = MIB, **more) -> VolumeSpec:
        return VolumeSpec(name=name, uid=more.pop("uid", "") or str(uuid.uuid4()), size=size, format=Format.RAW, **more)

    def create(self, name: str, size: int = MIB, **more) -> Volume:
        return self.backend.create_volume(self.spec(name, size, **more))

    def cut(self, volume: Volume, name: str = "s"):
        return self.backend.create_snapshot(self.id(volume), SnapshotSpec(name, str(uuid.uuid4())))

    def clone(self, name: str, of: Volume, snapshot=None, size: int = 0) -> Volume:
        source = (
            Source(SourceKind.SNAPSHOT, of.name, of.uid, snapshot.name, snapshot.uid)
            if snapshot
            else Source(SourceKind.VOLUME, of.name, of.uid)
        )
        return self.create(name, size or of.size, source=source)

    def delete(self, volume: Volume) -> None:
        self.backend.delete_volume(self.id(volume))

    @staticmethod
    def id(volume: Volume) -> VolumeId:
        return VolumeId(volume.name, volume.uid)

    def write(self, volume: Volume, data: bytes, offset: int = 0) -> None:
        with self.ioctx() as ioctx, rbd.Image(ioctx, volume.object) as image:
            image.write(data, offset)

    def read(self, volume: Volume, length: int, offset: int = 0) -> bytes:
        with self.ioctx() as ioctx, rbd.Image(ioctx, volume.object, read_only=True) as image:
            return bytes(image.read(offset, length))

    def rows(self) -> list[str]:
        with self.ioctx() as ioctx:
            return [key for key in self.cluster.rows(ioctx, "volgate.pool") if not key.startswith(OURS)]

    def left(self) -> list[str]:
        """What is in the namespace beside foreign images: images, what is in the trash, rows of the pool's object, headers of images."""
        with self.ioctx() as ioctx:
            names = [name for name in rbd.RBD().list(ioctx) if not name.startswith("foreign")]
            trash = [entry["name"] for entry in rbd.RBD().trash_list(ioctx)]
            return [*names, *trash, *self.rows()]

    def close(self) -> None:
        self.backend.close()


def other_client(pool: Pool) -> tuple[rados.Rados, rados.Ioctx]:
    """Somebody else, who has his own connection."""
    client = pool.cluster.connect()
    ioctx = client.open_ioctx(pool.rados_pool)
    ioctx.set_namespace(pool.namespace)
    return client, ioctx
