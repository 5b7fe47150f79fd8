"""What differs between two points in time of an image: told by librbd from a snapshot of its own, else found by reading.

A snapshot of a group has no name to compare from: both sides are read then, where either holds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from volgate.backend import Extent, VolumeId
from volgate.errors import NotFound, Precondition
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.snapshots import Snapshotting, Taken
from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["Comparing", "differing", "write_back"]

_EXACT, _WHOLE = 1 << 30, 1 << 36  # bytes of one request: an exact one tells an extent for each write, in the worst case
_READ, _PAGE = 4 << 20, 4096


class Comparing:
    """What ChangedBlocks asks, of one pool."""

    def __init__(self, store: Store, snapshots: Snapshotting) -> None:
        """Take the open pool."""
        self._store, self._snapshots = store, snapshots

    def changed(self, volume: VolumeId, base_uid: str, newer_uid: str, *, offset: int, length: int, exact: bool) -> Iterator[Extent]:
        """Yield what differs within a range, bytes. Raises NotFound, Precondition (BASE_NOT_OLDER)."""
        store, doing = self._store, f"compare volume {volume.name}"
        with store.use() as link:
            found = store.find(link, volume)
            there = self._snapshots.of(link, found) if base_uid or newer_uid else []
            base, newer = (_named(volume, there, uid) for uid in (base_uid, newer_uid))
            if base and newer and there.index(base) >= there.index(newer):
                told = f"{doing}: snapshot {base.cut.name} is not older than {newer.cut.name}"
                raise Precondition(told, reason="BASE_NOT_OLDER", field="base_snapshot")
            with store.image(link, found.header.id, doing, read_only=True) as image:
                with reading(doing):
                    end = min(offset + length, _turned(image, newer))
                if base is not None and base.cut.group:
                    yield from self._read(link, found, image, base, (offset, end), exact=exact)
                else:
                    yield from _told(image, base.cut.stored_as if base else None, (offset, end), doing, exact=exact)

    def _read(self, link: Link, found: Found, image: Any, base: Taken, span: tuple[int, int], *, exact: bool) -> Iterator[Extent]:
        doing = f"compare volume {found.tag.name}"
        with self._store.image(link, found.header.id, doing, snapshot_id=base.id, read_only=True) as old:
            step = _PAGE if exact else found.header.object_size
            for at, last in differing(old, image, span, doing, step):
                with reading(doing):
                    yield Extent(at, last - at, data=any(image.read(at, last - at)))


def write_back(store: Store, link: Link, found: Found, image: Any, one: Taken, doing: str) -> None:
    """Make an open image what a snapshot of it is, by writing what differs; a repeat goes on."""
    with store.image(link, found.header.id, doing, snapshot_id=one.id, read_only=True) as old:
        with changing(doing):
            if image.size() != one.size:
                image.resize(one.size)
        for at, last in differing(old, image, (0, one.size), doing, found.header.object_size):
            with changing(doing):
                data = old.read(at, last - at)
                if any(data):
                    image.write(data, at)
                else:
                    image.write_zeroes(at, last - at)
        with changing(doing):
            image.flush()


def differing(old: Any, new: Any, span: tuple[int, int], doing: str, step: int = _PAGE) -> Iterator[tuple[int, int]]:
    """The pieces of at most `step` bytes that differ between two opened images, each turned to its point in time, by reading."""
    with reading(doing):
        sizes = old.size(), new.size()
    for begin in range(*span, _WHOLE):
        end = min(span[1], begin + _WHOLE)
        with reading(doing):
            held = [
                one for image, size in zip((old, new), sizes, strict=True) for one in _diff(image, None, begin, min(end, size), whole=True)
            ]
        for extent in _merged(held, (begin, end), data_apart=False):
            for at in range(extent.offset, extent.offset + extent.length, _READ):
                last = min(at + _READ, extent.offset + extent.length)
                with reading(doing):
                    before, now = (_bytes(image, size, at, last) for image, size in zip((old, new), sizes, strict=True))
                yield from _unequal(before, now, at, step)


def _unequal(before: bytes, now: bytes, offset: int, step: int) -> Iterator[tuple[int, int]]:
    """Pieces that differ; they end where a multiple of `step` does."""
    if before == now:
        return
    at, end = offset, offset + len(now)
    while at < end:
        last = min(end, (at // step + 1) * step)
        if before[at - offset : last - offset] != now[at - offset : last - offset]:
            yield at, last
        at = last


def _bytes(image: Any, size: int, at: int, last: int) -> bytes:
    """Read an image; beyond its end there are zeroes."""
    data: bytes = image.read(at, min(last, size) - at) if at < size else b""
    return data.ljust(last - at, b"\0")


def _told(image: Any, base: str | None, span: tuple[int, int], doing: str, *, exact: bool) -> Iterator[Extent]:
    step = _EXACT if exact else _WHOLE
    for begin in range(*span, step):
        end = min(span[1], begin + step)
        with reading(doing):
            found = _diff(image, base, begin, end, whole=not exact)
        yield from _merged(found, (begin, end), data_apart=True)


def _diff(image: Any, base: str | None, begin: int, end: int, *, whole: bool) -> list[Extent]:
    """What librbd tells, of clones with what they have from their parents."""
    found: list[Extent] = []
    if begin < end:
        collect: Callable[[int, int, bool], None] = lambda at, length, data: found.append(Extent(at, length, data))  # noqa: E731  # one line
        image.diff_iterate(begin, end - begin, base, collect, include_parent=True, whole_object=whole)
    return found


def _merged(found: Iterable[Extent], span: tuple[int, int], *, data_apart: bool) -> Iterator[Extent]:
    """In order, without overlaps, within a range; what touches is one, unless one of the two is zeroes (`data_apart`)."""
    last: Extent | None = None
    for extent in sorted(found, key=lambda one: one.offset):
        begin, end = max(extent.offset, span[0]), min(extent.offset + extent.length, span[1])
        if last is not None and begin <= last.offset + last.length and (last.data == extent.data or not data_apart):
            last = Extent(last.offset, max(end, last.offset + last.length) - last.offset, last.data)
            continue
        if last is not None:
            yield last
            begin = max(begin, last.offset + last.length)
            last = None
        if begin < end:
            last = Extent(begin, end - begin, extent.data)
    if last is not None:
        yield last


def _named(volume: VolumeId, there: list[Taken], uid: str) -> Taken | None:
    if not uid:
        return None
    for one in there:
        if one.cut.uid == uid:
            return one
    raise NotFound(f"volume {volume.name} has no snapshot of uid {uid}")


def _turned(image: Any, to: Taken | None) -> int:
    """Turn an opened image to a snapshot, None: to now; return the size that it has there. Raises rbd.Error."""
    if to is not None:
        image.set_snap_by_id(to.id)
    return int(image.size())
