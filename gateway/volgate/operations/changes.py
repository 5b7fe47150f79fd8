"""What differs between two points in time of a volume: asked of the storage window by window, so that no page takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from volgate.backend import ChangedBlocks, Extent
from volgate.errors import NotFound, Precondition
from volgate.model import Snapshot
from volgate.names import VolumeName
from volgate.operations import lookups
from volgate.operations.world import World

__all__ = ["Changes", "Cursor", "Span", "list_changes"]

_FIRST, _MOST = 256 << 20, 64 << 30  # bytes of a window: it grows where little changed, and shrinks where much did
_FEW = 100
_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Span:
    """Between which two snapshots of a volume, by name; `base` "": everything, `snapshot` "": now."""

    name: VolumeName
    base: str
    snapshot: str
    exact: bool
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins, bytes, and of which objects the pages before it told, by uid."""

    offset: int = 0
    volume: str = ""
    base: str = ""
    snapshot: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """A page; `next` is None on the last one. `size` is that of the newer point in time, bytes."""

    extents: list[Extent]
    next: Cursor | None
    size: int


def list_changes(world: World, asked: Span, cursor: Cursor, limit: int) -> Changes:
    """A page of at most `limit` extents. Raises NotFound, Unsupported, Precondition (BASE_NOT_OLDER, UID_MISMATCH)."""
    pool = world.pools.get(asked.name.pool)
    pool.require_served()
    backend = pool.facet(ChangedBlocks)
    volume = lookups.require_volume(pool, asked.name, asked.uid)
    lookups.require_uid(str(asked.name), volume.uid, cursor.volume)
    cuts = lookups.snapshots_of(pool, volume)
    base = _named(asked, cuts, asked.base, "base_snapshot", cursor.base)
    newer = _named(asked, cuts, asked.snapshot, "snapshot", cursor.snapshot)
    if base and newer and cuts.index(base) >= cuts.index(newer):
        told = f"base_snapshot: {base.name} is not older than {newer.name}; exchange them"
        raise Precondition(told, reason="BASE_NOT_OLDER", field="base_snapshot")
    size, uids = newer.size if newer else volume.size, (base.uid if base else "", newer.uid if newer else "")

    def read(offset: int, length: int) -> list[Extent]:
        return list(backend.changed_blocks(lookups.identity(volume), *uids, offset=offset, length=length, exact=asked.exact))

    found, offset, window, deadline = list[Extent](), cursor.offset, _FIRST, time.monotonic() + _SECONDS
    while offset < size and len(found) < limit and time.monotonic() < deadline:
        length = min(window, size - offset)
        told_here = pool.call(read, offset, length)
        offset = _take(found, told_here, limit, offset + length)
        window = min(_MOST, window * 4) if len(told_here) < _FEW else max(_FIRST, window // 4)
    return Changes(found, Cursor(offset, volume.uid, *uids) if offset < size else None, size)


def _named(asked: Span, cuts: list[Snapshot], name: str, field: str, uid: str) -> Snapshot | None:
    if not name:
        return None
    found = next((cut for cut in cuts if cut.name == name), None)
    if found is None:
        raise NotFound(f"{field}: {asked.name}/snapshots/{name} does not exist", field=field)
    lookups.require_uid(f"{asked.name}/snapshots/{name}", found.uid, uid)
    return found


def _take(found: list[Extent], told: list[Extent], limit: int, end: int) -> int:
    """Add extents, those that touch as one; return where the next window begins: `end`, or what there was no place for."""
    for extent in _joined(found.pop() if found else None, told):
        if len(found) == limit:
            return extent.offset
        found.append(extent)
    return end


def _joined(last: Extent | None, told: list[Extent]) -> Iterator[Extent]:
    for extent in told:
        if last is not None and last.offset + last.length == extent.offset and last.data == extent.data:
            last = Extent(last.offset, last.length + extent.length, last.data)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
