"""The client's calls, one method each. Names are full resource names (`pools/default/volumes/a`), sizes are bytes.

Every method raises VolgateError, a class of :mod:`volgate_client.errors`. Enums are words: `qcow2`, `virtio-scsi`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2
from volgate_client.aio.images import Images
from volgate_client.words import number

__all__ = ["AsyncClient"]


class AsyncClient(Images):
    """A gateway, for asyncio. Make it where an event loop runs."""

    # -- pools

    def list_pools(self) -> AsyncIterator[pool_pb2.Pool]:
        """Every pool by name, also those that are down."""
        return self.pages(self.pools.ListPools, pool_pb2.ListPoolsRequest(), "pools")

    async def get_pool(self, name: str) -> pool_pb2.Pool:
        """One pool, measured now."""
        return (await self.call(self.pools.GetPool, pool_pb2.GetPoolRequest(name=name))).pool

    async def list_foreign(self, pool: str) -> Sequence[pool_pb2.ForeignObject]:
        """What `adopt_volume` could take, at most 1000: files that others made, and deleted volumes that are still kept."""
        return (await self.call(self.pools.GetPool, pool_pb2.GetPoolRequest(name=pool))).foreign

    async def drain_pool(self, name: str, *, resume: bool = False) -> pool_pb2.Pool:
        """Make a pool refuse new volumes, or accept them again."""
        return (await self.call(self.pools.DrainPool, pool_pb2.DrainPoolRequest(name=name, resume=resume))).pool

    async def quarantine_pool(self, name: str, reason: str) -> pool_pb2.QuarantinePoolResponse:
        """Have nothing done in a pool any more, until `release_pool`; tells the operations there that have not ended."""
        return await self.call(self.pools.QuarantinePool, pool_pb2.QuarantinePoolRequest(name=name, reason=reason))

    async def release_pool(self, name: str) -> pool_pb2.Pool:
        """Serve a pool again that was in quarantine."""
        return (await self.call(self.pools.QuarantinePool, pool_pb2.QuarantinePoolRequest(name=name, release=True))).pool

    # -- volumes

    async def create_volume(
        self,
        pool: str,
        volume_id: str,
        *,
        size_bytes: int = 0,
        format: str = "",  # noqa: A002  # the contract's word
        thick: bool = False,
        source: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> volume_pb2.Volume:
        """Make a volume, empty or from a snapshot or volume, and wait until it is ready. The name makes a repeat the same call."""
        request = volume_pb2.CreateVolumeRequest(
            pool=pool,
            volume_id=volume_id,
            size_bytes=size_bytes,
            format=number(volume_pb2.VolumeFormat, format, "format"),
            provisioning=volume_pb2.PROVISIONING_THICK if thick else volume_pb2.PROVISIONING_THIN,
            source=source,
            labels=labels,
            request_id=request_id,
        )
        return await self._settled(await self.call(self.volumes.CreateVolume, request), f"{pool}/volumes/{volume_id}")

    async def delete_volume(self, name: str, *, uid: str = "", request_id: str = "") -> None:
        """Delete a volume; success if it is gone. InUse names what holds it."""
        await self.call(self.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=name, uid=uid, request_id=request_id))

    async def get_volume(self, name: str, *, refresh: bool = False) -> volume_pb2.Volume:
        """A volume from the index, or with `refresh` from the storage."""
        return (await self.call(self.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=name, refresh=refresh))).volume

    def list_volumes(self, pool: str = "", *, page_size: int = 0) -> AsyncIterator[volume_pb2.Volume]:
        """Every volume by name, of one pool or of all."""
        return self.pages(self.volumes.ListVolumes, volume_pb2.ListVolumesRequest(pool=pool, page_size=page_size), "volumes")

    async def expand_volume(self, name: str, size_bytes: int, *, uid: str = "", request_id: str = "") -> volume_pb2.Volume:
        """Grow a volume, attached or not; never a shrink."""
        request = volume_pb2.ExpandVolumeRequest(name=name, size_bytes=size_bytes, uid=uid, request_id=request_id)
        return await self._settled(await self.call(self.volumes.ExpandVolume, request), name)

    async def update_volume(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        qos: volume_pb2.Qos | None = None,
        uid: str = "",
        request_id: str = "",
    ) -> volume_pb2.Volume:
        """Replace the labels, and the limits of the attachments the volume has now; None leaves them as they are."""
        kept = labels is None
        request = volume_pb2.UpdateVolumeRequest(name=name, labels=labels, keep_labels=kept, qos=qos, uid=uid, request_id=request_id)
        return await self._settled(await self.call(self.volumes.UpdateVolume, request), name)

    async def revert_volume(self, name: str, snapshot: str, *, uid: str = "", request_id: str = "") -> volume_pb2.Volume:
        """Set a detached volume back to a snapshot. Keep `request_id` where the caller itself may repeat the call."""
        request = volume_pb2.RevertVolumeRequest(name=name, snapshot=snapshot, uid=uid, request_id=request_id)
        return await self._settled(await self.call(self.volumes.RevertVolume, request), name)

    async def adopt_volume(
        self,
        pool: str,
        locator: str,
        volume_id: str,
        format: str,  # noqa: A002  # the contract's word
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> volume_pb2.Volume:
        """Make a volume of an object in the pool that others made; its data is not touched."""
        kind = number(volume_pb2.VolumeFormat, format, "format")
        request = volume_pb2.AdoptVolumeRequest(
            pool=pool, locator=locator, volume_id=volume_id, format=kind, labels=labels, request_id=request_id
        )
        return await self._settled(await self.call(self.volumes.AdoptVolume, request), f"{pool}/volumes/{volume_id}")

    def list_changed_blocks(
        self, name: str, base_snapshot: str = "", snapshot: str = "", *, exact: bool = False, uid: str = "", page_size: int = 0
    ) -> AsyncIterator[volume_pb2.ChangedExtent]:
        """What differs between two snapshots of a volume, by offset; without a base all that was written, without the other until now."""
        request = volume_pb2.ListChangedBlocksRequest(
            name=name, base_snapshot=base_snapshot, snapshot=snapshot, exact=exact, uid=uid, page_size=page_size
        )
        return self.pages(self.volumes.ListChangedBlocks, request, "extents")

    async def _settled(self, answer: Any, name: str) -> volume_pb2.Volume:
        """The volume of an answer, after its operation if that still runs."""
        if answer.HasField("volume"):
            volume: volume_pb2.Volume = answer.volume
            return volume
        await self.wait(answer.operation)
        return await self.get_volume(name)

    # -- snapshots

    async def create_snapshot(
        self,
        volume: str,
        snapshot_id: str,
        *,
        quiesce: bool = False,
        labels: Mapping[str, str] | None = None,
        volume_uid: str = "",
        request_id: str = "",
    ) -> snapshot_pb2.Snapshot:
        """Cut a snapshot, of an attached volume too; `quiesce` freezes the guest's file systems through its agent."""
        request = snapshot_pb2.CreateSnapshotRequest(
            volume=volume, snapshot_id=snapshot_id, quiesce=quiesce, labels=labels, volume_uid=volume_uid, request_id=request_id
        )
        return (await self.call(self.snapshots.CreateSnapshot, request)).snapshot

    async def create_snapshot_group(
        self,
        pool: str,
        snapshots: Mapping[str, str],
        *,
        labels: Mapping[str, str] | None = None,
        volume_uids: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Sequence[snapshot_pb2.Snapshot]:
        """Cut snapshots of several volumes at one moment, all or none; `snapshots` has their names by the names of the volumes.

        Keep `request_id` where the caller itself may repeat the call.
        """
        request = snapshot_pb2.CreateSnapshotGroupRequest(
            pool=pool, snapshots=snapshots, labels=labels, volume_uids=volume_uids, request_id=request_id
        )
        return (await self.call(self.snapshots.CreateSnapshotGroup, request)).snapshots

    async def delete_snapshot(self, name: str, *, uid: str = "", request_id: str = "") -> None:
        """Delete a snapshot; success if it is gone. InUse names clones that hold it."""
        await self.call(self.snapshots.DeleteSnapshot, snapshot_pb2.DeleteSnapshotRequest(name=name, uid=uid, request_id=request_id))

    async def get_snapshot(self, name: str) -> snapshot_pb2.Snapshot:
        """One snapshot."""
        return (await self.call(self.snapshots.GetSnapshot, snapshot_pb2.GetSnapshotRequest(name=name))).snapshot

    def list_snapshots(self, parent: str = "", *, page_size: int = 0) -> AsyncIterator[snapshot_pb2.Snapshot]:
        """Every snapshot by name, of a volume, of a pool or of all."""
        return self.pages(self.snapshots.ListSnapshots, snapshot_pb2.ListSnapshotsRequest(parent=parent, page_size=page_size), "snapshots")

    # -- attachments

    async def attach_volume(
        self,
        volume: str,
        domain: str,
        *,
        host: str = "",
        options: attachment_pb2.DiskOptions | None = None,
        volume_uid: str = "",
        request_id: str = "",
    ) -> attachment_pb2.Attachment:
        """Make a volume a disk of a domain (name or uuid)."""
        request = attachment_pb2.AttachVolumeRequest(
            volume=volume, host=host, domain=domain, options=options, volume_uid=volume_uid, request_id=request_id
        )
        return (await self.call(self.attachments.AttachVolume, request)).attachment

    async def prepare_volume(
        self, volume: str, domain: str, *, host: str = "", options: attachment_pb2.DiskOptions | None = None, request_id: str = ""
    ) -> tuple[attachment_pb2.Attachment, str]:
        """Connect and record an attachment whose XML the caller hands to libvirt; return both."""
        request = attachment_pb2.AttachVolumeRequest(
            volume=volume, host=host, domain=domain, options=options, prepare_only=True, request_id=request_id
        )
        answer = await self.call(self.attachments.AttachVolume, request)
        return answer.attachment, answer.disk_xml

    async def detach_volume(self, name: str, *, wait_seconds: int = 0, request_id: str = "") -> operation_pb2.Operation | None:
        """Take the disk away. None when it is gone; the running operation if the guest has not released it in `wait_seconds` (0: 20)."""
        request = attachment_pb2.DetachVolumeRequest(name=name, wait_seconds=wait_seconds, request_id=request_id)
        answer = await self.call(self.attachments.DetachVolume, request, timeout=self.timeout + wait_seconds)
        return answer.operation if answer.HasField("attachment") else None

    async def get_attachment(self, name: str) -> attachment_pb2.Attachment:
        """One attachment."""
        return (await self.call(self.attachments.GetAttachment, attachment_pb2.GetAttachmentRequest(name=name))).attachment

    def list_attachments(self, volume: str = "", host: str = "", *, page_size: int = 0) -> AsyncIterator[attachment_pb2.Attachment]:
        """Every attachment, of one volume, of one host or of all."""
        request = attachment_pb2.ListAttachmentsRequest(volume=volume, host=host, page_size=page_size)
        return self.pages(self.attachments.ListAttachments, request, "attachments")

    async def list_paths(self, name: str) -> attachment_pb2.ListPathsResponse:
        """Every way that the I/O of an attachment or a volume can travel, and what they come to."""
        return await self.call(self.attachments.ListPaths, attachment_pb2.ListPathsRequest(name=name))

    # -- hosts

    def list_hosts(self) -> AsyncIterator[host_pb2.Host]:
        """Every host by name."""
        return self.pages(self.hosts.ListHosts, host_pb2.ListHostsRequest(), "hosts")

    async def get_host(self, name: str) -> host_pb2.Host:
        """One host with its domains."""
        return (await self.call(self.hosts.GetHost, host_pb2.GetHostRequest(name=name))).host

    async def cordon_host(self, name: str, *, uncordon: bool = False) -> host_pb2.CordonHostResponse:
        """Close a host to new attachments, or open it again; the answer lists the attachments that it has."""
        return await self.call(self.hosts.CordonHost, host_pb2.CordonHostRequest(name=name, uncordon=uncordon))

    async def release_host(self, name: str, *, assume_off: bool) -> host_pb2.ReleaseHostResponse:
        """Let go of the attachments of a host that is off or fenced, as the caller vouches; the answer lists them."""
        return await self.call(self.hosts.ReleaseHost, host_pb2.ReleaseHostRequest(name=name, assume_off=assume_off))

    async def remove_host(self, name: str) -> None:
        """Forget a host without attachments; success if there is none."""
        await self.call(self.hosts.RemoveHost, host_pb2.RemoveHostRequest(name=name))

    async def fence_host(self, name: str, addresses: Sequence[str] = (), *, request_id: str = "") -> host_pb2.FenceHostResponse:
        """Keep a host's clients out of every pool that can do that; once it returns, no write of theirs lands there any more."""
        request = host_pb2.FenceHostRequest(name=name, addresses=addresses, request_id=request_id)
        return await self.call(self.hosts.FenceHost, request)

    async def unfence_host(self, name: str, *, assume_restarted: bool = False, request_id: str = "") -> host_pb2.Host:
        """Let a host's clients in again, after what ran there was stopped."""
        request = host_pb2.UnfenceHostRequest(name=name, assume_restarted=assume_restarted, request_id=request_id)
        return (await self.call(self.hosts.UnfenceHost, request)).host

    # -- operations

    async def get_operation(self, name: str) -> operation_pb2.Operation:
        """One operation."""
        return (await self.call(self.operations.GetOperation, operation_pb2.GetOperationRequest(name=name))).operation

    def list_operations(self, *, unfinished_only: bool = False, page_size: int = 0) -> AsyncIterator[operation_pb2.Operation]:
        """Every operation, newest first."""
        request = operation_pb2.ListOperationsRequest(unfinished_only=unfinished_only, page_size=page_size)
        return self.pages(self.operations.ListOperations, request, "operations")

    async def cancel_operation(self, name: str) -> operation_pb2.Operation:
        """Ask a running operation to stop and undo."""
        return (await self.call(self.operations.CancelOperation, operation_pb2.CancelOperationRequest(name=name))).operation
