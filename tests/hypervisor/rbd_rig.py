"""RBD images made by the bindings alone, and how a host reaches them: no plugin is between."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import rbd

from tests.labs.ceph import CLIENT, POOL, CephCluster
from tests.labs.ceph_config import new_key
from volgate.connection import RbdImage

__all__ = ["Images", "rotate"]

MIB = 1 << 20


class Images:
    """Images of a test's own in the lab's first pool."""

    def __init__(self, ceph: CephCluster) -> None:
        self.ceph = ceph
        self._made: list[str] = []

    def make(self, size: int = 32 * MIB, **other) -> RbdImage:
        """A new image as a plugin would tell of it; `other` says what differs."""
        name = f"disk.{uuid.uuid4().hex[:8]}"
        with self.ceph.ioctx() as ioctx:
            rbd.RBD().create(ioctx, name, size)
            self._made.append(name)
            with rbd.Image(ioctx, name, read_only=True) as image:
                identity = image.id()
            told = RbdImage(
                fsid=self.ceph.fsid,
                pool_id=ioctx.get_pool_id(),
                pool=POOL,
                namespace="",
                image=name,
                image_id=identity,
                uid=str(uuid.uuid4()),
                monitors=(*self.ceph.monitors, self.ceph.monitors[0].replace("127.0.0.1", "localhost")),
                user=CLIENT,
                key=f"file:{self.ceph.key_file}",
                size=size,
            )
        return replace(told, **other)

    @contextlib.contextmanager
    def opened(self, image: RbdImage, *, read_only: bool = True) -> Iterator[rbd.Image]:
        """The image as the administrator sees it."""
        with self.ceph.ioctx() as ioctx, rbd.Image(ioctx, image.image, read_only=read_only) as found:
            yield found

    def read(self, image: RbdImage, length: int, offset: int = 0) -> bytes:
        """Bytes past the guest."""
        with self.opened(image) as found:
            return bytes(found.read(offset, length))

    def watchers(self, image: RbdImage) -> list[str]:
        """Addresses of the clients that have the image open for writing."""
        with self.opened(image) as found:
            return [watcher["addr"] for watcher in found.watchers_list()]

    def rotate(self) -> None:
        """Give the client another key, in Ceph and in the file that refers to it."""
        rotate(self.ceph, CLIENT, self.ceph.key_file)

    def key(self) -> str:
        """The client's key of now."""
        return self.ceph.key_file.read_text()

    def clean(self) -> None:
        """Remove what was made; nothing has it open any more."""
        with self.ceph.ioctx() as ioctx:
            for name in self._made:
                rbd.RBD().remove(ioctx, name)


def rotate(ceph: CephCluster, client: str, file: Path) -> None:
    """Give a client another key, in Ceph and in the file that refers to it."""
    key, entity = new_key(), f"client.{client}"
    (found,) = ceph.command("auth get", entity=entity)
    caps = "".join(f"caps {kind} = {json.dumps(said)}\n" for kind, said in found["caps"].items())
    ceph.command("auth import", f"[{entity}]\nkey = {key}\n{caps}".encode())
    file.write_text(key)
