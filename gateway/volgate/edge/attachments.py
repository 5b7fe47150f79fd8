"""AttachmentService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import cast

from volgate.edge import convert, validate
from volgate.edge.hosts import host_name
from volgate.edge.path_watches import PathWatches
from volgate.edge.types import Context
from volgate.edge.wait import Calls, scope
from volgate.errors import InvalidRequest
from volgate.names import AttachmentName, VolumeName
from volgate.operations import requests
from volgate.operations.attachments import Attached
from volgate.v1 import attachment_pb2, attachment_pb2_grpc

__all__ = ["AttachmentServicer"]

_WAIT_DEFAULT = 20


class AttachmentServicer(attachment_pb2_grpc.AttachmentServiceServicer):
    """Hands volumes to domains and takes them back."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls
        self._watches = PathWatches(calls)

    async def AttachVolume(  # noqa: N802  # the contract's name
        self, request: attachment_pb2.AttachVolumeRequest, context: Context
    ) -> attachment_pb2.AttachVolumeResponse:
        """Make a volume a disk of a domain."""
        typed = requests.AttachVolume(
            volume=VolumeName.parse(request.volume, "volume"),
            host=host_name(request.host, "host"),
            domain=validate.printable(request.domain, "domain", longest=255),
            options=convert.disk_options(request.options),
            prepare_only=request.prepare_only,
            volume_uid=validate.uid(request.volume_uid, "volume_uid"),
        )
        identifier = validate.request_id(request.request_id)
        if not typed.domain:
            raise InvalidRequest("domain: say which domain, by name or uuid", field="domain")
        if request.validate_only:
            return attachment_pb2.AttachVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        answer = cast("Attached", ticket.future.result())
        return attachment_pb2.AttachVolumeResponse(
            attachment=convert.attachment(answer.attachment), operation=convert.operation(ticket.record()), disk_xml=answer.disk_xml
        )

    async def DetachVolume(  # noqa: N802  # the contract's name
        self, request: attachment_pb2.DetachVolumeRequest, context: Context
    ) -> attachment_pb2.DetachVolumeResponse:
        """Take the disk away; PENDING is told truthfully."""
        wait = validate.bounded(request.wait_seconds, "wait_seconds", 0, 600) or _WAIT_DEFAULT
        typed = requests.DetachVolume(AttachmentName.parse(request.name).id, wait)
        identifier = validate.request_id(request.request_id)
        if request.validate_only:
            return attachment_pb2.DetachVolumeResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, ended = await self._calls.run(typed, identifier, context)
        waiting = None if ended else convert.attachment(ticket.pending.result())
        return attachment_pb2.DetachVolumeResponse(attachment=waiting, operation=convert.operation(ticket.record()))

    async def GetAttachment(  # noqa: N802  # the contract's name
        self, request: attachment_pb2.GetAttachmentRequest, _: Context
    ) -> attachment_pb2.GetAttachmentResponse:
        """One attachment."""
        record = await self._calls.read(self._calls.gateway.get_attachment, AttachmentName.parse(request.name).id, scope())
        return attachment_pb2.GetAttachmentResponse(attachment=convert.attachment(record))

    async def ListAttachments(  # noqa: N802  # the contract's name
        self, request: attachment_pb2.ListAttachmentsRequest, _: Context
    ) -> attachment_pb2.ListAttachmentsResponse:
        """A page by id."""
        volume = VolumeName.parse(request.volume, "volume") if request.volume else None
        host = host_name(request.host, "host")
        size, after = validate.page_size(request.page_size), validate.read_token("attachments", request, request.page_token)
        if volume:
            await self._calls.read(self._calls.gateway.get_volume, volume, refresh=False)  # none: NOT_FOUND, not an empty page
        if host:
            self._calls.gateway.world.host(host)
        rows = await self._calls.read(self._calls.gateway.list_attachments, str(volume or ""), host, after, size + 1, scope())
        more = validate.page_token("attachments", request, rows[size - 1].id) if len(rows) > size else ""
        return attachment_pb2.ListAttachmentsResponse(attachments=[convert.attachment(row) for row in rows[:size]], next_page_token=more)

    async def ListPaths(  # noqa: N802  # the contract's name
        self, request: attachment_pb2.ListPathsRequest, _: Context
    ) -> attachment_pb2.ListPathsResponse:
        """Every way that the I/O can travel."""
        name, pool = await self._named(request.name)
        paths, redundancy = await self._calls.ask(f"pools/{pool}", self._calls.gateway.list_paths, name)
        return attachment_pb2.ListPathsResponse(paths=[convert.path(p) for p in paths], redundancy=convert.redundancy(redundancy))

    async def WatchPaths(  # noqa: N802  # the contract's name
        self, request: attachment_pb2.WatchPathsRequest, _: Context
    ) -> AsyncIterator[attachment_pb2.WatchPathsResponse]:
        """The same, now and at each change."""
        name, _pool = await self._named(request.name)
        async with aclosing(self._watches.follow(name)) as seen:
            async for paths, redundancy in seen:
                yield attachment_pb2.WatchPathsResponse(paths=[convert.path(p) for p in paths], redundancy=convert.redundancy(redundancy))

    async def _named(self, told: str) -> tuple[str, str]:
        """The full name of an attachment that the caller may see, or of a volume; and its pool."""
        if told.startswith("attachments/"):
            attachment = AttachmentName.parse(told)
            return str(attachment), (await self._calls.read(self._calls.gateway.get_attachment, attachment.id, scope())).pool
        volume = VolumeName.parse(told)
        return str(volume), volume.pool
