"""The array's verb that compares: pages of two files, but for those that are holes in both."""

# descriptors are the subject here; paths stay plain strings
# ruff: noqa: PTH116

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from volgate.backend import Extent, VolumeId
from volgate.backend.files import opened
from volgate.errors import Precondition, translate
from volgate_plugins.memory.snapshots import find_cut
from volgate_plugins.memory.table import Record, Table

__all__ = ["Comparing"]

_PAGE, _OBJECT = 4096, 1 << 20


class Comparing:
    """Verbs on a table."""

    def __init__(self, table: Table) -> None:
        """Work on a table."""
        self._table = table

    def changed_blocks(
        self, volume: VolumeId, base_snapshot_uid: str, snapshot_uid: str, offset: int, length: int, exact: bool
    ) -> list[Extent]:
        """Compare two snapshots, or a snapshot with the volume; without a base, with a volume that nobody has written to."""
        table = self._table
        with table.holding(volume.name), translate(f"compare volume {volume.name}"):
            record = table.find(volume)
            _require_order(record, base_snapshot_uid, snapshot_uid)
            newer = self._file(record, snapshot_uid)
            end = min(offset + length, os.stat(newer).st_size)
            with opened(newer, os.O_RDONLY) as new:
                if not base_snapshot_uid:
                    return list(_joined(_changed(new, None, offset, end, exact=exact, told=table.wanted)))
                with opened(self._file(record, base_snapshot_uid), os.O_RDONLY) as old:
                    return list(_joined(_changed(new, old, offset, end, exact=exact, told=table.wanted)))

    def _file(self, record: Record, uid: str) -> str:
        return self._table.media.path(record.stored_as, find_cut(record, uid).file if uid else record.file)


def _require_order(record: Record, base: str, snapshot: str) -> None:
    """Raise NotFound; Precondition if the base is not older."""
    order = [cut.uid for cut in record.snapshots]
    for uid in (base, snapshot):
        if uid:
            find_cut(record, uid)
    if base and snapshot and order.index(base) >= order.index(snapshot):
        told = f"snapshot {base} of volume {record.tag.name} is not older than {snapshot}"
        raise Precondition(told, reason="BASE_NOT_OLDER", field="base_snapshot")


def _changed(new: int, old: int | None, begin: int, end: int, *, exact: bool, told: Callable[[], None]) -> Iterator[Extent]:
    """The pages, or objects, that differ."""
    step = _PAGE if exact else _OBJECT
    at = begin
    while (at := _next_data(new, old, at, end)) < end:
        told()
        last = min(end, (at // step + 1) * step)
        first = max(begin, at // step * step)
        now = os.pread(new, last - first, first)
        before = bytes(len(now)) if old is None else os.pread(old, last - first, first).ljust(len(now), b"\0")
        if now != before:
            yield Extent(first, last - first, data=now.count(0) != len(now))
        at = last


def _next_data(new: int, old: int | None, at: int, end: int) -> int:
    """Where the next page is that is no hole in both."""
    return min((_seek(file, at, end) for file in (new, old) if file is not None), default=end)


def _seek(file: int, at: int, end: int) -> int:
    try:
        return min(end, os.lseek(file, at, os.SEEK_DATA))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


def _joined(found: Iterator[Extent]) -> Iterator[Extent]:
    last: Extent | None = None
    for extent in found:
        if last is not None and last.offset + last.length == extent.offset and last.data == extent.data:
            last = Extent(last.offset, last.length + extent.length, last.data)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
