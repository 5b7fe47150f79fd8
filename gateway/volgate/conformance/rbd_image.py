"""An RBD image, read and written as a guest's QEMU would: by librbd, through what its connection says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from volgate.backend.secrets import resolve
from volgate.connection import RbdImage

__all__ = ["opened", "read", "write"]

_CHUNK = 4 << 20
_SECONDS = "30"


def read(image: RbdImage) -> Iterator[tuple[int, bytes]]:
    """The data of an image, or of a snapshot of it (`image@snapshot`, `image@id:7`), piece by piece."""
    with opened(image, read_only=True) as client:
        size, found = client.size(), list[tuple[int, int]]()
        client.diff_iterate(0, size, None, lambda offset, length, exists: found.append((offset, length)) if exists else None)
        for offset, length in found:
            for at in range(offset, offset + length, _CHUNK):
                yield at, client.read(at, min(_CHUNK, offset + length - at))


def write(image: RbdImage, pieces: Mapping[int, bytes]) -> None:
    """Write pieces, durably."""
    with opened(image, read_only=False) as client:
        for offset, data in pieces.items():
            client.write(data, offset)
        client.flush()


@contextmanager
def opened(image: RbdImage, *, read_only: bool) -> Iterator[Any]:
    """A client of its own: what the backend has open says nothing."""
    import rados
    import rbd

    options = {"mon_host": ",".join(image.monitors), "key": resolve(image.key).reveal()}
    limits = dict.fromkeys(("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"), _SECONDS)
    quiet = dict.fromkeys(("log_to_stderr", "err_to_stderr"), "false")
    client = rados.Rados(rados_id=image.user, conf={**options, **limits, **quiet})
    client.connect()
    try:
        assert client.get_fsid() == image.fsid
        with client.open_ioctx(image.pool) as ioctx:
            assert ioctx.get_pool_id() == image.pool_id
            ioctx.set_namespace(image.namespace)
            name, _, snapshot = image.image.partition("@")
            by_id = snapshot.startswith("id:")
            with rbd.Image(ioctx, name, snapshot=None if by_id else snapshot or None, read_only=read_only) as handle:
                if by_id:
                    handle.set_snap_by_id(int(snapshot.removeprefix("id:")))
                assert handle.id() == image.image_id
                yield handle
    finally:
        client.shutdown()
