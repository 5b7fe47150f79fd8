"""Images: up as a stream that becomes a volume, down as a sparse file."""

# ruff: noqa: ASYNC109  # a timeout is also told to the gateway as the deadline

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import grpc

from volgate.v1 import operation_pb2, volume_pb2
from volgate_client import trace
from volgate_client.aio import seam
from volgate_client.aio.connection import Connection, identified
from volgate_client.attempts import Attempts
from volgate_client.errors import from_rpc, local

__all__ = ["Images", "Progress"]

Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all; what it raises ends the transfer cleanly and reaches the caller."""
_CHUNK = 1 << 20
_ZEROES = bytes(_CHUNK)


class Images(Connection):
    """Imports and exports. A transfer that is cut off by the gateway's restart begins again with the same request_id."""

    async def import_file(
        self, header: volume_pb2.ImportHeader, path: Path | None, *, progress: Progress | None = None, timeout: float | None = None
    ) -> volume_pb2.Volume:
        """Send an image (None: the header names a path on the server) and wait until it is a volume; return the volume.

        `timeout` bounds the whole, seconds. Raises OSError for the file, VolgateError for the rest; nothing is left then.
        """
        header = identified(header)
        attempts = self.patient(timeout)

        def told(done: int, total: int) -> None:
            attempts.progressed()
            if progress:
                progress(done, total)

        with contextlib.ExitStack() as opened:
            stream = opened.enter_context(await seam.in_thread(path.open, "rb")) if path else None
            header = _announced(header, stream)
            while True:
                parts = _parts(header, stream, told)
                try:
                    answer = await seam.send(self.volumes.ImportVolume, parts, timeout=attempts.left(), metadata=trace.headers())
                    break
                except grpc.RpcError as error:
                    pause = attempts.pause(from_rpc(error, self.address))
                await seam.sleep(pause)
        if answer.HasField("volume"):
            volume: volume_pb2.Volume = answer.volume
            return volume
        await self.wait(answer.operation, timeout=attempts.left())
        request = volume_pb2.GetVolumeRequest(name=f"{header.pool}/volumes/{header.volume_id}")
        return (await self.call(self.volumes.GetVolume, request)).volume

    async def export_file(
        self,
        request: volume_pb2.ExportVolumeRequest,
        path: Path,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
        overwrite: bool = True,
    ) -> int:
        """Write the content of a detached volume or of a snapshot to a sparse file of mode 0600; return its size in bytes.

        The file appears complete or not at all. Raises OSError for the file, InvalidRequest if `path` may not be replaced.
        """
        await seam.in_thread(_check_target, path, overwrite)
        attempts = self.patient(timeout)
        descriptor, name = await seam.in_thread(tempfile.mkstemp, ".partial", f".{path.name}.", path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                total = await self._download(request, stream, attempts, progress)
            await seam.in_thread(os.replace, name, path)
        except BaseException:  # whatever it was, half a file does not stay
            os.unlink(name)  # noqa: PTH108  # at once: a cancelled task must not wait here
            raise
        return total

    async def export_on_server(
        self, request: volume_pb2.ExportVolumeRequest, *, progress: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> int:
        """Write the content to `request.path`, a new file on the server's host, and wait until it is whole; return its length in bytes.

        `progress` is told the done fraction, 0 to 1; `timeout` bounds the whole, seconds. Raises VolgateError; no file is left then.
        """
        request = identified(request)
        attempts = self.patient(timeout)
        while True:
            call = self.volumes.ExportVolume(request, timeout=attempts.left(), metadata=trace.headers())
            try:
                async for answer in call:
                    attempts.progressed()
                    if progress:
                        progress(answer.operation.progress)
            except grpc.RpcError as error:
                pause = attempts.pause(from_rpc(error, self.address))
            else:
                if answer.operation.state == operation_pb2.OPERATION_STATE_DONE:
                    return int(answer.total_bytes)
                await self.wait(answer.operation, timeout=attempts.left(), progress=progress)
                continue  # to ask for the answer
            finally:
                call.cancel()
            await seam.sleep(pause)

    async def _download(
        self, request: volume_pb2.ExportVolumeRequest, stream: BinaryIO, attempts: Attempts, progress: Progress | None
    ) -> int:
        while True:
            total = 0
            stream.truncate(0)
            call = self.volumes.ExportVolume(request, timeout=attempts.left(), metadata=trace.headers())
            try:
                async for piece in call:
                    attempts.progressed()
                    total = piece.total_bytes
                    await seam.in_thread(_write, stream, piece.offset, piece.chunk)
                    if progress:
                        progress(piece.offset + len(piece.chunk), total)
                await seam.in_thread(stream.truncate, total)
                return total
            except grpc.RpcError as error:
                pause = attempts.pause(from_rpc(error, self.address))
            finally:
                call.cancel()
            await seam.sleep(pause)


def _check_target(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_file():
        raise local("file", f"{path} exists and is no regular file")
    if path.exists() and not overwrite:
        raise local("file", f"{path} exists")


def _write(stream: BinaryIO, offset: int, chunk: bytes) -> None:
    stream.seek(offset)
    stream.write(chunk)


def _announced(header: volume_pb2.ImportHeader, stream: BinaryIO | None) -> volume_pb2.ImportHeader:
    """The header with the image's length: what is cut short on its way is noticed."""
    if stream is None:
        return header
    announced = volume_pb2.ImportHeader()
    announced.CopyFrom(header)
    announced.image_bytes = stream.seek(0, os.SEEK_END)
    return announced


async def _parts(
    header: volume_pb2.ImportHeader, stream: BinaryIO | None, progress: Progress
) -> AsyncIterator[volume_pb2.ImportVolumeRequest]:
    yield volume_pb2.ImportVolumeRequest(header=header)
    if stream is None:
        return
    sent = 0
    while sent < header.image_bytes:
        part, length = await seam.in_thread(_part, stream, sent, header.image_bytes)
        if not length:
            return  # it has become shorter: the gateway will say so
        yield part
        sent += length
        progress(sent, header.image_bytes)


def _part(stream: BinaryIO, offset: int, end: int) -> tuple[volume_pb2.ImportVolumeRequest, int]:
    """What comes next of an image, as a chunk or a hole, and its length in bytes."""
    hole = _next_data(stream.fileno(), offset, end) - offset
    if hole:
        return volume_pb2.ImportVolumeRequest(hole=hole), hole
    chunk = os.pread(stream.fileno(), min(_CHUNK, end - offset), offset)
    if chunk and chunk == _ZEROES[: len(chunk)]:
        return volume_pb2.ImportVolumeRequest(hole=len(chunk)), len(chunk)
    return volume_pb2.ImportVolumeRequest(chunk=chunk), len(chunk)


def _next_data(descriptor: int, offset: int, end: int) -> int:
    """Where the next data of a file begin, `end` if there are none; `offset` where its file system cannot tell."""
    try:
        return min(end, os.lseek(descriptor, offset, os.SEEK_DATA))
    except OSError as error:
        return end if error.errno == errno.ENXIO else offset
