"""A served pool, a guest and the calls between them, as an orchestrator makes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.edge.server import Server
from tests.edge.wire import Wire
from tests.labs.domain import Guest
from volgate.v1 import attachment_pb2, operation_pb2, snapshot_pb2, volume_pb2

__all__ = ["GIB", "MIB", "World", "until"]

MIB = 1 << 20
GIB = 1 << 30
SECONDS = 60
VOLUME = "pools/p/volumes/data"


def until(holds: Callable[[], bool], seconds: float = 20.0, told: Callable[[], object] = str) -> None:
    """Wait for something that comes by itself; `told` is what is known when it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to that within {seconds:g} s: {told()}"
        time.sleep(0.05)


class World:
    """`server` may be killed and started again; `wire` follows it."""

    def __init__(self, folder: Path, pool: Path, uri: str, table: str = "") -> None:
        """`table`: the pool `p` as a configuration has it, if it is no directory."""
        self.pool = pool
        config = f'[hosts.local]\nuri = "{uri}"\n' + (table or f'[pools.p]\nkind = "directory"\npath = "{pool}"\n')
        self.server = Server(folder / "state", config=config).start()
        self.wire = Wire(self.server.address)

    def again(self) -> None:
        """Kill the gateway, unless it is dead already, and start a new one."""
        if self.server.process and self.server.process.poll() is None:
            self.server.kill9()
        self.wire.channel.close()
        self.server.start()
        self.wire = Wire(self.server.address)

    def close(self) -> None:
        self.wire.channel.close()
        assert self.server.stop() == 0

    def create(self, name: str = "data", size: int = 64 * MIB, form: int = volume_pb2.VOLUME_FORMAT_QCOW2) -> volume_pb2.Volume:
        request = volume_pb2.CreateVolumeRequest(pool="pools/p", volume_id=name, size_bytes=size, format=form)
        return self.wire.volumes.CreateVolume(request, timeout=SECONDS).volume

    def attach(self, guest: Guest, volume: str = VOLUME, *, prepare: bool = False, **options) -> attachment_pb2.AttachVolumeResponse:
        options.setdefault("serial", "data")
        request = attachment_pb2.AttachVolumeRequest(
            volume=volume, domain=guest.name, options=attachment_pb2.DiskOptions(**options), prepare_only=prepare
        )
        return self.wire.attachments.AttachVolume(request, timeout=SECONDS)

    def detach(self, name: str, wait: int = 20) -> attachment_pb2.DetachVolumeResponse:
        return self.wire.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=name, wait_seconds=wait), timeout=SECONDS)

    def attachments(self) -> list[attachment_pb2.Attachment]:
        return list(self.wire.attachments.ListAttachments(attachment_pb2.ListAttachmentsRequest(), timeout=SECONDS).attachments)

    def state(self, name: str) -> str:
        found = self.wire.attachments.GetAttachment(attachment_pb2.GetAttachmentRequest(name=name), timeout=SECONDS).attachment
        return attachment_pb2.AttachmentState.Name(found.state).removeprefix("ATTACHMENT_STATE_")

    def snapshot(self, name: str, *, quiesce: bool = False) -> snapshot_pb2.Snapshot:
        request = snapshot_pb2.CreateSnapshotRequest(volume=VOLUME, snapshot_id=name, quiesce=quiesce)
        return self.wire.snapshots.CreateSnapshot(request, timeout=SECONDS).snapshot

    def drop_snapshot(self, name: str) -> None:
        self.wire.snapshots.DeleteSnapshot(snapshot_pb2.DeleteSnapshotRequest(name=f"{VOLUME}/snapshots/{name}"), timeout=SECONDS)

    def revert(self, snapshot: str, request_id: str) -> None:
        request = volume_pb2.RevertVolumeRequest(name=VOLUME, snapshot=snapshot, request_id=request_id)
        self.wire.volumes.RevertVolume(request, timeout=SECONDS)

    def idle(self) -> None:
        """Wait until nothing is under way."""
        request = operation_pb2.ListOperationsRequest(unfinished_only=True)
        until(lambda: not self.wire.operations.ListOperations(request, timeout=SECONDS).operations)
