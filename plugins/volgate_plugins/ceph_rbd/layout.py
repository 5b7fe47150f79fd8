"""What librbd keeps of an image beside its data: the header's omap, the object map, the directory. Read in many requests at once.

Opening an image takes ten times as long as reading these. The layout is that of format 2; librbd reads the same keys.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rados

__all__ = ["META", "Header", "Parent", "allocated", "directory", "drop_group", "drop_name", "headers", "rewrite"]

META = "metadata_"
TAG = "volgate.tag"
_KEYS = ("data_pool_id", "features", "flags", "object_prefix", "order", "parent", "size", META + TAG)
_AT_ONCE = 128
_PAGE = 1000
_OBJECT_MAP = 8
_MAP_HEAD = struct.Struct("<I2BIQ")


@dataclass(frozen=True, slots=True)
class Parent:
    """What a clone lies on."""

    pool_id: int
    namespace: str
    image_id: str
    snapshot_id: int


@dataclass(frozen=True, slots=True)
class Header:
    """An image: sizes in bytes; `prefix` begins the names of its data objects; `metadata` without the prefix of the keys.

    `snapshots`, of every kind, by name: id and size; known if the whole header was read. `data_pool`: the id of the pool that its
    data are in, -1 for the image's own.
    """

    id: str
    size: int
    features: int
    flags: int
    object_size: int
    prefix: str
    parent: Parent | None
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    snapshots: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    data_pool: int = -1

    @property
    def tag(self) -> bytes:
        """Our tag, b"" if there is none."""
        return self.metadata.get(TAG, b"")


def directory(ioctx: rados.Ioctx, prefix: str = "") -> dict[str, str]:
    """The images whose names begin so, by name: their ids. Raises rados.Error."""
    found: dict[str, str] = {}
    after, begins = "", f"name_{prefix}"
    while True:
        with rados.ReadOpCtx() as op:
            rows, _ = ioctx.get_omap_vals(op, after, begins, _PAGE)
            try:
                ioctx.operate_read_op(op, "rbd_directory")
            except rados.ObjectNotFound:
                return found
            page = list(rows)
        found |= {key.removeprefix("name_"): value[4:].decode() for key, value in page}
        if len(page) < _PAGE:
            return found
        after = page[-1][0]


def headers(ioctx: rados.Ioctx, ids: Iterable[str], *, whole: bool = False) -> dict[str, Header]:
    """The headers of images by id, without those that there are not (any more); `whole`: with all metadata. Raises rados.Error."""
    found: dict[str, Header] = {}
    for image_id, rows in _many(ioctx, ids, whole=whole):
        if (header := _header(image_id, rows)) is not None:
            found[image_id] = header
    return found


def allocated(ioctx: rados.Ioctx, images: Sequence[Header]) -> dict[str, int]:
    """The bytes that the objects of images take, by id; 0 where no object map says. Raises rados.Error."""
    mapped = [header for header in images if header.features & _OBJECT_MAP and not header.flags & 1]
    found = {header.id: 0 for header in images}
    running: deque[tuple[Header, Any, list[bytes]]] = deque()

    def finish() -> None:
        header, completion, into = running.popleft()
        completion.wait_for_complete_and_cb()
        code = completion.get_return_value()
        if code < 0 and code != -errno.ENOENT:
            raise rados.OSError("an object map cannot be read", -code)
        if into:
            found[header.id] = min(header.size, _objects(into[0]) * header.object_size)

    for header in mapped:
        into: list[bytes] = []
        length = _MAP_HEAD.size + (header.size // header.object_size + 4) // 4 + 8
        told = _collector(into)
        running.append((header, ioctx.aio_read(f"rbd_object_map.{header.id}", length, 0, told), into))
        if len(running) >= _AT_ONCE:
            finish()
    while running:
        finish()
    return found


def rewrite(
    ioctx: rados.Ioctx,
    header: Header,
    values: Mapping[str, bytes],
    removed: Sequence[str] = (),
) -> None:
    """Change metadata of an image at once, if its tag is still the one that was read.

    Raises rados.Error, of errno ECANCELED if the tag is another one, or the image is gone.
    """
    with rados.WriteOpCtx() as op:
        if header.tag:
            op.omap_cmp(META + TAG, header.tag.decode())
        else:
            op.omap_cmp("object_prefix", (struct.pack("<I", len(header.prefix)) + header.prefix.encode()).decode("latin-1"))
        if values:
            op.execute("rbd", "metadata_set", _map(values))
        for key in removed:
            op.execute("rbd", "metadata_remove", _string(key.encode()))
        try:
            ioctx.operate_write_op(op, f"rbd_header.{header.id}")
        except rados.ObjectNotFound as error:  # the comparison of an object that is not there
            raise rados.OSError("the image is gone", errno.ECANCELED) from error


def drop_name(ioctx: rados.Ioctx, name: str, image_id: str) -> None:
    """Remove what a rename that died has left of a name that the directory does not give to this image. Raises rados.Error."""
    try:
        said = ioctx.read(f"rbd_id.{name}")
        if said == _string(image_id.encode()) and name not in directory(ioctx, name):
            ioctx.remove_object(f"rbd_id.{name}")
    except rados.ObjectNotFound:
        return


def drop_group(ioctx: rados.Ioctx, name: str) -> None:
    """Remove a group of which no image and no snapshot is left, whatever librbd says; success if there is none. Raises rados.Error."""
    with rados.ReadOpCtx() as op:
        rows, _ = ioctx.get_omap_vals_by_keys(op, (f"name_{name}",))
        try:
            ioctx.operate_read_op(op, "rbd_group_directory")
        except rados.ObjectNotFound:
            return
        found = dict(rows)
    if not found:
        return
    (value,) = found.values()
    with contextlib.suppress(rados.ObjectNotFound):
        ioctx.remove_object(f"rbd_group_header.{value[4:].decode()}")
    with rados.WriteOpCtx() as op:
        op.execute("rbd", "group_dir_remove", _string(name.encode()) + value)
        ioctx.operate_write_op(op, "rbd_group_directory")


def _many(ioctx: rados.Ioctx, ids: Iterable[str], *, whole: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    running: deque[tuple[str, Any, Any, Any]] = deque()
    try:
        for image_id in ids:
            op = ioctx.create_read_op()
            rows = ioctx.get_omap_vals(op, "", "", _PAGE)[0] if whole else ioctx.get_omap_vals_by_keys(op, _KEYS)[0]
            running.append((image_id, op, rows, ioctx.operate_aio_read_op(op, f"rbd_header.{image_id}")))
            if len(running) >= _AT_ONCE:
                yield _done(ioctx, running)
        while running:
            yield _done(ioctx, running)
    finally:
        for _, op, _, completion in running:  # after an error: what is under way is waited for, it writes into the operation
            completion.wait_for_complete()
            ioctx.release_read_op(op)


def _done(ioctx: rados.Ioctx, running: deque[tuple[str, Any, Any, Any]]) -> tuple[str, dict[str, bytes]]:
    image_id, op, rows, completion = running.popleft()
    completion.wait_for_complete()
    code = completion.get_return_value()
    found = dict(rows) if code == 0 else {}
    ioctx.release_read_op(op)
    if code not in (0, -errno.ENOENT):
        raise rados.OSError(f"the header of image {image_id} cannot be read", -code)
    return image_id, found


def _header(image_id: str, rows: Mapping[str, bytes]) -> Header | None:
    """Read a header; None if it is not whole: an image that is just being made, or removed."""
    if not {"size", "order", "object_prefix", "features"} <= rows.keys():
        return None
    metadata = {key.removeprefix(META): value for key, value in rows.items() if key.startswith(META)}
    return Header(
        id=image_id,
        size=_number(rows["size"]),
        features=_number(rows["features"]),
        flags=_number(rows.get("flags", b"")),
        object_size=1 << rows["order"][0],
        prefix=rows["object_prefix"][4:].decode(),
        parent=_parent(rows.get("parent", b"")),
        metadata=metadata,
        snapshots=dict(_snapshot(value) for key, value in sorted(rows.items()) if key.startswith("snapshot_")),
        data_pool=struct.unpack("<q", rows["data_pool_id"])[0] if "data_pool_id" in rows else -1,
    )


def _snapshot(data: bytes) -> tuple[str, tuple[int, int]]:
    """Read the head of `cls_rbd_snap`, which is the same in every version: id, name, size."""
    (snapshot_id,) = struct.unpack_from("<Q", data, 6)
    name, at = _text(data, 14)
    (size,) = struct.unpack_from("<Q", data, at)
    return name, (snapshot_id, size)


def _parent(data: bytes) -> Parent | None:
    """Read `cls_rbd_parent`: of version 1 without a namespace."""
    if len(data) < 6:  # noqa: PLR2004 - version, oldest version, length
        return None
    version, at = data[0], 6
    (pool_id,) = struct.unpack_from("<q", data, at)
    at += 8
    namespace = ""
    if version > 1:
        namespace, at = _text(data, at)
    image_id, at = _text(data, at)
    (snapshot_id,) = struct.unpack_from("<Q", data, at)
    return Parent(pool_id, namespace, image_id, snapshot_id) if pool_id >= 0 and image_id else None


def _objects(data: bytes) -> int:
    """Count the objects that exist: two bits of each, 0 for none."""
    if len(data) < _MAP_HEAD.size:
        return 0
    length = _MAP_HEAD.unpack_from(data)[4]
    bits = int.from_bytes(data[_MAP_HEAD.size : _MAP_HEAD.size + (length + 3) // 4])
    return ((bits | bits >> 1) & int.from_bytes(b"\x55" * ((length + 3) // 4))).bit_count()


def _collector(into: list[bytes]) -> Any:
    def told(_completion: Any, data: bytes | None) -> None:
        if data is not None:
            into.append(data)

    return told


def _number(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + length].decode(), at + 4 + length


def _string(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _map(values: Mapping[str, bytes]) -> bytes:
    return struct.pack("<I", len(values)) + b"".join(_string(key.encode()) + _string(value) for key, value in sorted(values.items()))
