"""VolumeService, but for its streams, which are in `transfer`."""

from __future__ import annotations

from typing import cast

from volgate.edge import convert, validate
from volgate.edge.answers import Answers
from volgate.edge.changes import ChangedBlocks, snapshot_of
from volgate.edge.transfer import Transfers
from volgate.edge.types import Context
from volgate.edge.wait import Calls, scope
from volgate.errors import InvalidRequest
from volgate.names import PoolName, VolumeName, check_identifier, parse_content
from volgate.operations import requests
from volgate.store.records import IndexedVolume
from volgate.v1 import volume_pb2, volume_pb2_grpc

__all__ = ["VolumeServicer"]

_LARGEST = 1 << 50
_KEPT_VOLUMES, _KEPT_PAGES = 4096, 32  # a page of 500 takes about 0.3 MiB


class VolumeServicer(Transfers, ChangedBlocks, volume_pb2_grpc.VolumeServiceServicer):
    """Makes, changes and deletes volumes."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls
        self._gets: Answers[volume_pb2.GetVolumeResponse] = Answers(calls.gateway.commits, _KEPT_VOLUMES)
        self._pages: Answers[volume_pb2.ListVolumesResponse] = Answers(calls.gateway.commits, _KEPT_PAGES)

    async def CreateVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.CreateVolumeRequest, context: Context
    ) -> volume_pb2.CreateVolumeResponse:
        """Make a volume."""
        typed = requests.CreateVolume(
            pool=PoolName.parse(request.pool, "pool").pool,
            volume=check_identifier(request.volume_id, "volume_id"),
            size=validate.bounded(request.size_bytes, "size_bytes", 0, _LARGEST),
            format=validate.choice(request.format, convert.FORMATS_OPTIONAL, "format"),
            provisioning=validate.choice(request.provisioning, convert.PROVISIONING, "provisioning"),
            source=_source(request.source),
            labels=validate.labels(request.labels, "labels"),
        )
        identifier = validate.request_id(request.request_id)
        if not typed.size and not typed.source:
            raise InvalidRequest("size_bytes: say how large, in bytes", field="size_bytes")
        if request.validate_only:
            return volume_pb2.CreateVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, ended = await self._calls.run(typed, identifier, context)
        row = convert.volume(cast("IndexedVolume", ticket.future.result())) if ended else None
        return volume_pb2.CreateVolumeResponse(volume=row, operation=convert.operation(ticket.record()))

    async def DeleteVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.DeleteVolumeRequest, context: Context
    ) -> volume_pb2.DeleteVolumeResponse:
        """Delete a volume."""
        typed = requests.DeleteVolume(VolumeName.parse(request.name), validate.uid(request.uid, "uid"))
        identifier = validate.request_id(request.request_id)
        if request.validate_only:
            return volume_pb2.DeleteVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        return volume_pb2.DeleteVolumeResponse(operation=convert.operation(ticket.record()))

    async def GetVolume(self, request: volume_pb2.GetVolumeRequest, _: Context) -> volume_pb2.GetVolumeResponse:  # noqa: N802  # the contract's name
        """One volume."""
        return await (self._get(request) if request.refresh else self._gets.to(request, lambda: self._get(request)))

    async def _get(self, request: volume_pb2.GetVolumeRequest) -> volume_pb2.GetVolumeResponse:
        name = VolumeName.parse(request.name)
        place = str(PoolName(name.pool)) if request.refresh else ""
        row = await self._calls.ask(place, self._calls.gateway.get_volume, name, refresh=request.refresh)
        return volume_pb2.GetVolumeResponse(volume=convert.volume(row))

    async def ListVolumes(self, request: volume_pb2.ListVolumesRequest, _: Context) -> volume_pb2.ListVolumesResponse:  # noqa: N802  # the contract's name
        """A page by name."""
        return await self._pages.to(request, lambda: self._page(request), scope())

    async def _page(self, request: volume_pb2.ListVolumesRequest) -> volume_pb2.ListVolumesResponse:
        pool = PoolName.parse(request.pool, "pool").pool if request.pool else ""
        size, after = validate.page_size(request.page_size), validate.read_token("volumes", request, request.page_token)
        rows = await self._calls.read(self._calls.gateway.list_volumes, pool, after, size + 1, scope())
        last = rows[size - 1] if len(rows) > size else None
        more = validate.page_token("volumes", request, f"{last.pool}/{last.name}") if last else ""
        return convert.volumes(rows[:size], more)

    async def ExpandVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.ExpandVolumeRequest, context: Context
    ) -> volume_pb2.ExpandVolumeResponse:
        """Grow a volume."""
        typed = requests.ExpandVolume(
            VolumeName.parse(request.name),
            validate.bounded(request.size_bytes, "size_bytes", 1, _LARGEST),
            validate.uid(request.uid, "uid"),
        )
        identifier = validate.request_id(request.request_id)
        if request.validate_only:
            return volume_pb2.ExpandVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        row = cast("IndexedVolume", ticket.future.result())
        return volume_pb2.ExpandVolumeResponse(volume=convert.volume(row), operation=convert.operation(ticket.record()))

    async def UpdateVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.UpdateVolumeRequest, context: Context
    ) -> volume_pb2.UpdateVolumeResponse:
        """Replace the labels and the limits."""
        labels = validate.labels(request.labels, "labels")
        qos = convert.limits(request.qos, "qos") if request.HasField("qos") else None
        kept = None if request.keep_labels else labels
        typed = requests.UpdateVolume(VolumeName.parse(request.name), kept, validate.uid(request.uid, "uid"), qos)
        identifier = validate.request_id(request.request_id)
        if labels and request.keep_labels:
            raise InvalidRequest("labels: keep_labels leaves them as they are, so none may be given", field="labels")
        if request.validate_only:
            return volume_pb2.UpdateVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        row = cast("IndexedVolume", ticket.future.result())
        return volume_pb2.UpdateVolumeResponse(volume=convert.volume(row), operation=convert.operation(ticket.record()))

    async def RevertVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.RevertVolumeRequest, context: Context
    ) -> volume_pb2.RevertVolumeResponse:
        """Go back to a snapshot."""
        name = VolumeName.parse(request.name)
        snapshot = snapshot_of(request.snapshot, name, "snapshot")
        typed = requests.RevertVolume(name, snapshot, validate.uid(request.uid, "uid"))
        identifier = validate.request_id(request.request_id, needed=not request.validate_only)
        if request.validate_only:
            return volume_pb2.RevertVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, ended = await self._calls.run(typed, identifier, context)
        row = convert.volume(cast("IndexedVolume", ticket.future.result())) if ended else None
        return volume_pb2.RevertVolumeResponse(volume=row, operation=convert.operation(ticket.record()))

    async def AdoptVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.AdoptVolumeRequest, context: Context
    ) -> volume_pb2.AdoptVolumeResponse:
        """Tag a foreign object."""
        typed = requests.AdoptVolume(
            pool=PoolName.parse(request.pool, "pool").pool,
            locator=validate.printable(request.locator, "locator", longest=255),
            volume=check_identifier(request.volume_id, "volume_id"),
            format=validate.choice(request.format, convert.FORMATS_ALL, "format"),
            labels=validate.labels(request.labels, "labels"),
        )
        if not typed.locator or "/" in typed.locator or typed.locator.startswith("."):
            raise InvalidRequest(f"locator: {typed.locator!r} is not the name of a foreign object", field="locator")
        if typed.format not in ("raw", "qcow2"):
            raise InvalidRequest(f"format: a volume is raw or qcow2, not {typed.format}; import the image instead", field="format")
        identifier = validate.request_id(request.request_id)
        if request.validate_only:
            return volume_pb2.AdoptVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        row = cast("IndexedVolume", ticket.future.result())
        return volume_pb2.AdoptVolumeResponse(volume=convert.volume(row), operation=convert.operation(ticket.record()))


def _source(text: str) -> str:
    """A full snapshot or volume name, or nothing."""
    return str(parse_content(text, "source")) if text else ""
