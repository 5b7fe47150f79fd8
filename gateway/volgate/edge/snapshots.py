"""SnapshotService."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls, scope
from volgate.errors import InvalidRequest
from volgate.names import PoolName, SnapshotName, VolumeName, check_identifier
from volgate.operations import requests
from volgate.store.records import IndexedSnapshot
from volgate.v1 import snapshot_pb2, snapshot_pb2_grpc

__all__ = ["SnapshotServicer"]

_GROUP_MOST = 64


class SnapshotServicer(snapshot_pb2_grpc.SnapshotServiceServicer):
    """Cuts and deletes snapshots."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls

    async def CreateSnapshot(  # noqa: N802  # the contract's name
        self, request: snapshot_pb2.CreateSnapshotRequest, context: Context
    ) -> snapshot_pb2.CreateSnapshotResponse:
        """Cut a snapshot."""
        of = VolumeName.parse(request.volume, "volume")
        typed = requests.CreateSnapshot(
            name=SnapshotName(of.pool, of.volume, check_identifier(request.snapshot_id, "snapshot_id")),
            quiesce=request.quiesce,
            labels=validate.labels(request.labels, "labels"),
            volume_uid=validate.uid(request.volume_uid, "volume_uid"),
        )
        identifier = validate.request_id(request.request_id)
        if request.validate_only:
            return snapshot_pb2.CreateSnapshotResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        row = cast("IndexedSnapshot", ticket.future.result())
        return snapshot_pb2.CreateSnapshotResponse(snapshot=convert.snapshot(row), operation=convert.operation(ticket.record()))

    async def CreateSnapshotGroup(  # noqa: N802  # the contract's name
        self, request: snapshot_pb2.CreateSnapshotGroupRequest, context: Context
    ) -> snapshot_pb2.CreateSnapshotGroupResponse:
        """Cut snapshots of several volumes."""
        typed = requests.CreateSnapshotGroup(
            pool=PoolName.parse(request.pool, "pool").pool,
            snapshots=_members(request.snapshots),
            labels=validate.labels(request.labels, "labels"),
            volume_uids={name: validate.uid(uid, f"volume_uids[{name[:64]}]") for name, uid in sorted(request.volume_uids.items())},
        )
        identifier = validate.request_id(request.request_id)
        if strange := [name for name in typed.volume_uids if name not in request.snapshots]:
            raise InvalidRequest(f"volume_uids: {strange[0][:64]!r} is not among the snapshots", field="volume_uids")
        if request.validate_only:
            return snapshot_pb2.CreateSnapshotGroupResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        rows = [convert.snapshot(row) for row in cast("tuple[IndexedSnapshot, ...]", ticket.future.result())]
        return snapshot_pb2.CreateSnapshotGroupResponse(snapshots=rows, operation=convert.operation(ticket.record()))

    async def DeleteSnapshot(  # noqa: N802  # the contract's name
        self, request: snapshot_pb2.DeleteSnapshotRequest, context: Context
    ) -> snapshot_pb2.DeleteSnapshotResponse:
        """Delete a snapshot."""
        typed = requests.DeleteSnapshot(SnapshotName.parse(request.name), validate.uid(request.uid, "uid"))
        identifier = validate.request_id(request.request_id)
        if request.validate_only:
            return snapshot_pb2.DeleteSnapshotResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        return snapshot_pb2.DeleteSnapshotResponse(operation=convert.operation(ticket.record()))

    async def GetSnapshot(  # noqa: N802  # the contract's name
        self, request: snapshot_pb2.GetSnapshotRequest, _: Context
    ) -> snapshot_pb2.GetSnapshotResponse:
        """One snapshot."""
        row = await self._calls.read(self._calls.gateway.get_snapshot, SnapshotName.parse(request.name))
        return snapshot_pb2.GetSnapshotResponse(snapshot=convert.snapshot(row))

    async def ListSnapshots(  # noqa: N802  # the contract's name
        self, request: snapshot_pb2.ListSnapshotsRequest, _: Context
    ) -> snapshot_pb2.ListSnapshotsResponse:
        """A page by name."""
        pool = volume = ""
        if "/volumes/" in request.parent:
            name = VolumeName.parse(request.parent, "parent")
            pool, volume = name.pool, name.volume
            await self._calls.read(self._calls.gateway.get_volume, name, refresh=False)  # none: NOT_FOUND, not an empty page
        elif request.parent:
            pool = PoolName.parse(request.parent, "parent").pool
        size, after = validate.page_size(request.page_size), validate.read_token("snapshots", request, request.page_token)
        rows = await self._calls.read(self._calls.gateway.list_snapshots, pool, volume, after, size + 1, scope())
        last = rows[size - 1] if len(rows) > size else None
        key = f"{last.pool}/{last.snapshot.volume}/{last.snapshot.name}" if last else ""
        more = validate.page_token("snapshots", request, key) if last else ""
        return snapshot_pb2.ListSnapshotsResponse(snapshots=[convert.snapshot(row) for row in rows[:size]], next_page_token=more)


def _members(found: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Volumes and the names of their snapshots, by volume."""
    if not 1 <= len(found) <= _GROUP_MOST:
        raise InvalidRequest(f"snapshots: {len(found)} volumes are outside 1 to {_GROUP_MOST}", field="snapshots")
    return tuple((check_identifier(volume, "snapshots"), check_identifier(name, "snapshots")) for volume, name in sorted(found.items()))
