"""The reference for reads: a bare grpc.aio server of its own process that answers with messages made before.

`python -m tests.bench.echo SOCKET [GET LIST]`: GET and LIST are files with a serialized answer of GetVolume and ListVolumes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from grpc import aio

from volgate.v1 import volume_pb2, volume_pb2_grpc


class Echo(volume_pb2_grpc.VolumeServiceServicer):
    """Answers at once."""

    def __init__(self, get: bytes, page: bytes) -> None:
        self._get = volume_pb2.GetVolumeResponse.FromString(get)
        self._page = volume_pb2.ListVolumesResponse.FromString(page)

    async def GetVolume(self, _request, _context):  # noqa: N802  # the contract's name
        return self._get

    async def ListVolumes(self, _request, _context):  # noqa: N802  # the contract's name
        return self._page

    async def ExportVolume(self, request, _context):  # noqa: N802  # the contract's name
        """Stream as many bytes as the name says."""
        chunk = bytes(range(256)) * 4096
        for offset in range(0, int(request.name), len(chunk)):
            yield volume_pb2.ExportVolumeResponse(offset=offset, chunk=chunk)


async def serve(path: str, get: bytes, page: bytes) -> None:
    server = aio.server()
    volume_pb2_grpc.add_VolumeServiceServicer_to_server(Echo(get, page), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    answers = [Path(name).read_bytes() for name in sys.argv[2:]] or [b"", b""]
    asyncio.run(serve(sys.argv[1], answers[0], answers[1]))
