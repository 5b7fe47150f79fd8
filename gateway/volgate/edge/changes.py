"""VolumeService's look at what changed."""

from __future__ import annotations

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls
from volgate.errors import InvalidRequest
from volgate.names import SnapshotName, VolumeName, check_identifier
from volgate.operations.changes import Cursor, Span
from volgate.v1 import volume_pb2

__all__ = ["ChangedBlocks", "snapshot_of"]


class ChangedBlocks:
    """Serves the call."""

    _calls: Calls

    async def ListChangedBlocks(  # noqa: N802  # the contract's name
        self, request: volume_pb2.ListChangedBlocksRequest, _: Context
    ) -> volume_pb2.ListChangedBlocksResponse:
        """A page by offset."""
        name = VolumeName.parse(request.name)
        asked = Span(
            name=name,
            base=snapshot_of(request.base_snapshot, name, "base_snapshot") if request.base_snapshot else "",
            snapshot=snapshot_of(request.snapshot, name, "snapshot") if request.snapshot else "",
            exact=request.exact,
            uid=validate.uid(request.uid, "uid"),
        )
        size, cursor = validate.page_size(request.page_size), _read(validate.read_token("changes", request, request.page_token))
        page = await self._calls.ask(f"pools/{name.pool}", self._calls.gateway.list_changes, asked, cursor, size)
        more = validate.page_token("changes", request, _written(page.next)) if page.next else ""
        extents = [convert.extent(extent) for extent in page.extents]
        return volume_pb2.ListChangedBlocksResponse(extents=extents, next_page_token=more, size_bytes=page.size)


def snapshot_of(text: str, volume: VolumeName, field: str) -> str:
    """The id of a snapshot of a volume, given as that or as its full name."""
    if "/" not in text:
        return check_identifier(text, field)
    full = SnapshotName.parse(text, field)
    if full.of != volume:
        raise InvalidRequest(f"{field}: {full} is of another volume than {volume}", field=field)
    return full.snapshot


def _written(cursor: Cursor) -> str:
    return f"{cursor.offset}:{cursor.volume}:{cursor.base}:{cursor.snapshot}"


def _read(text: str) -> Cursor:
    if not text:
        return Cursor()
    offset, *uids = text.split(":")
    if not (offset.isascii() and offset.isdecimal()) or len(offset) > 20 or len(uids) != 3:  # noqa: PLR2004  # what `_written` makes
        raise validate.bad_token()
    return Cursor(int(offset), *uids)
