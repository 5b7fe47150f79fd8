"""The streams of VolumeService: images in, images out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import cast

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls
from volgate.errors import InvalidRequest
from volgate.model import Format
from volgate.names import PoolName, SnapshotName, VolumeName, check_identifier, parse_content
from volgate.operations import requests
from volgate.operations.imports import remove_spool
from volgate.operations.ticket import Ticket
from volgate.operations.transfer import ExportReader, Upload
from volgate.store.records import IndexedVolume, OperationState
from volgate.v1 import volume_pb2

__all__ = ["Transfers"]

_CHUNK_MOST = 1 << 20
_IMAGE_MOST = 1 << 50


class Transfers:
    """ImportVolume and ExportVolume."""

    _calls: Calls

    async def ImportVolume(  # noqa: N802  # the contract's name
        self, stream: AsyncIterator[volume_pb2.ImportVolumeRequest], context: Context
    ) -> volume_pb2.ImportVolumeResponse:
        """Spool what the client sends, or take the allowed path, then make the volume."""
        first = await anext(aiter(stream), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidRequest("header: the first message of an import holds the header", field="header")
        typed, identifier = _header(first.header)
        if typed.path:
            path = await self._calls.spool(self._calls.gateway.allowed_path, typed.path)
            typed = replace(typed, path=path)
        else:
            typed = await self._spool(typed, stream, first.header.image_bytes)
        ticket = await self._submit(typed, identifier)
        ended = await self._calls.wait(ticket, typed, context)
        row = convert.volume(cast("IndexedVolume", ticket.future.result())) if ended else None
        return volume_pb2.ImportVolumeResponse(volume=row, operation=convert.operation(ticket.record()))

    async def _submit(self, typed: requests.ImportVolume, identifier: str) -> Ticket:
        """Begin the import; its upload goes when it has ended, or at once if this was a repeat. One in doubt still needs it."""
        if not typed.spooled:
            return await self._calls.submit(typed, identifier)
        try:
            ticket = await self._calls.submit(typed, identifier)
        except BaseException:  # whatever it was, nobody will come for what was uploaded
            remove_spool(typed.path)
            raise

        def ended(_: object) -> None:
            record = ticket.record()
            if record.state is not OperationState.IN_DOUBT or Path(typed.path).name.encode() not in record.request:
                remove_spool(typed.path)

        ticket.future.add_done_callback(ended)
        return ticket

    async def _spool(
        self, typed: requests.ImportVolume, stream: AsyncIterator[volume_pb2.ImportVolumeRequest], announced: int
    ) -> requests.ImportVolume:
        upload = await self._calls.acquire("spool", Upload.abort, self._calls.gateway.open_upload)
        try:
            async for message in stream:
                if message.WhichOneof("part") == "hole":
                    await self._calls.spool(upload.skip, _hole(message, upload.length))
                else:
                    await self._calls.spool(upload.write, _chunk(message))
            _require_whole(announced, upload.length)
            path, digest = await self._calls.spool(upload.finish)
        except BaseException:  # whatever it was, a cancellation too, half an upload goes
            upload.abort()
            raise
        return replace(typed, path=path, spooled=True, digest=digest)

    async def ExportVolume(  # noqa: N802  # the contract's name
        self, request: volume_pb2.ExportVolumeRequest, context: Context
    ) -> AsyncIterator[volume_pb2.ExportVolumeResponse]:
        """Send the content, gaps left out; or write it to the allowed path and tell how that goes on."""
        name = parse_content(request.name)
        wanted = validate.choice(request.format, convert.FORMATS_OPTIONAL, "format") or Format.RAW
        path, identifier = validate.path(request.path, "path"), validate.request_id(request.request_id)
        pieces = self._write(name, wanted, path, identifier, context) if path else self._send(name, wanted)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _write(
        self, name: VolumeName | SnapshotName, wanted: Format, path: str, identifier: str, context: Context
    ) -> AsyncGenerator[volume_pb2.ExportVolumeResponse]:
        path = await self._calls.spool(self._calls.gateway.new_path, path)
        if isinstance(name, SnapshotName):
            typed = requests.ExportVolume(name.of, path, wanted, name.snapshot)
        else:
            typed = requests.ExportVolume(name, path, wanted)
        ticket = await self._calls.submit(typed, identifier)
        async for record in self._calls.follow(ticket, typed, context):
            size = cast("int", ticket.future.result()) if record.state is OperationState.DONE else 0
            yield volume_pb2.ExportVolumeResponse(total_bytes=size, operation=convert.operation(record))

    async def _send(self, name: VolumeName | SnapshotName, wanted: Format) -> AsyncGenerator[volume_pb2.ExportVolumeResponse]:
        place = str(PoolName(name.pool))
        reader = await self._calls.acquire(place, ExportReader.close, self._calls.gateway.export, name, wanted)
        try:
            yield volume_pb2.ExportVolumeResponse(total_bytes=reader.size)
            piece = await self._calls.ask(place, reader.next)
            while piece is not None:
                following = asyncio.ensure_future(self._calls.ask(place, reader.next))  # read while this one is sent
                try:
                    yield volume_pb2.ExportVolumeResponse(offset=piece[0], chunk=piece[1], total_bytes=reader.size)
                finally:
                    piece = await following
        finally:
            reader.close()


def _require_whole(announced: int, came: int) -> None:
    if announced not in (0, came):
        name = "header.image_bytes"
        raise InvalidRequest(f"{name}: {announced} bytes were announced, {came} came; send the image again", field=name)


def _chunk(message: volume_pb2.ImportVolumeRequest) -> bytes:
    if message.WhichOneof("part") != "chunk" or len(message.chunk) > _CHUNK_MOST:
        raise InvalidRequest(
            f"chunk: after the header, every message holds a chunk of at most {_CHUNK_MOST} bytes, or a hole", field="chunk"
        )
    return message.chunk


def _hole(message: volume_pb2.ImportVolumeRequest, came: int) -> int:
    return validate.bounded(message.hole, "hole", 1, _IMAGE_MOST - came)


def _header(header: volume_pb2.ImportHeader) -> tuple[requests.ImportVolume, str]:
    typed = requests.ImportVolume(
        pool=PoolName.parse(header.pool, "header.pool").pool,
        volume=check_identifier(header.volume_id, "header.volume_id"),
        source_format=validate.choice(header.source_format, convert.FORMATS_ALL, "header.source_format"),
        path=validate.path(header.path, "header.path"),
        spooled=False,
        format=validate.choice(header.format, convert.FORMATS_OPTIONAL, "header.format"),
        size=validate.bounded(header.size_bytes, "header.size_bytes", 0, 1 << 50),
        labels=validate.labels(header.labels, "header.labels"),
    )
    if validate.bounded(header.image_bytes, "header.image_bytes", 0, _IMAGE_MOST) and typed.path:
        raise InvalidRequest("header.image_bytes: is the length of a stream; with a path there is none", field="header.image_bytes")
    return typed, validate.request_id(header.request_id, "header.request_id")
