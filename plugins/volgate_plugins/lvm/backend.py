"""The backend: a thin pool with every facet that LVM gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from volgate.backend import Clones, Extracts, Measures, PoolCheck, PoolContext, Relabels, Resizes, Reverts, SnapshotSpec, Traits, VolumeId
from volgate.connection import Connection, LocalBlock
from volgate.errors import Precondition, VolgateError
from volgate.model import Capacity, Format, Health, Labels, Snapshot, Volume, VolumeSpec
from volgate_plugins.lvm import media, tags
from volgate_plugins.lvm.catalog import Catalog, Logical
from volgate_plugins.lvm.command import Commands
from volgate_plugins.lvm.settings import LvmSettings
from volgate_plugins.lvm.volumes import Volumes

__all__ = ["Lvm"]


class Lvm(Resizes, Reverts, Clones, Measures, Extracts, Relabels):
    """A pool."""

    def __init__(self, settings: LvmSettings, context: PoolContext) -> None:
        """Claim a group that is nobody's and has no volumes of ours, or prove that it is ours.

        Raises InvalidRequest, Precondition (LVM_MISSING, LVM_GROUP_MISSING, LVM_POOL_MISSING, POOL_FOREIGN, POOL_MARKER_MISSING).
        """
        settings.check()
        self._settings = settings
        commands = Commands(settings)
        self._volumes = Volumes(settings, context, commands)
        doing = f"open pool {context.pool}"
        seen = Catalog.look(commands, settings, context, doing)
        if not seen.owner and not seen.logicals:
            commands.change(doing, "vgchange", "--addtag", tags.owner_mark(context.instance), settings.vg)
            seen = self._volumes.look(doing)
        if seen.proven(doing).suspended:
            self._volumes.look(doing)  # an earlier process died in a command: its guests wait
        self._traits = self._volumes.traits(seen.proven(doing).extent)

    @property
    def traits(self) -> Traits:
        """Raw volumes of whole extents; clones stand alone; snapshots under a guest."""
        return self._traits

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Make a thin volume, a clone, or a thick volume of zeroes."""
        return self._volumes.create(spec, self._traits)

    def delete_volume(self, volume: VolumeId) -> None:
        """Delete it."""
        self._volumes.delete(volume)

    def get_volume(self, name: str) -> Volume:
        """Read it."""
        return self._volumes.look(f"read volume {name}").named(name).volume()

    def list_volumes(self) -> Iterator[Volume]:
        """Read them all, by one report."""
        for one in self._volumes.look("list volumes").volumes():
            yield one.volume()

    def connection(self, volume: VolumeId, *, host: str) -> Connection:
        """The device, named by the uuid that device mapper knows it by."""
        del host  # the group is this host's
        found = self._volumes.opened(volume, "", f"connection of volume {volume.name}")
        if found.content.incomplete:
            raise Precondition(f"volume {volume.name} is still being filled", reason="NOT_READY")
        return _block(found)

    def check(self) -> PoolCheck:
        """Look whether the group and the thin pool are there, ours, and not too full."""
        try:
            stock = self._volumes.look("check the pool").stock
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)
        if stock.fullest < self._settings.alert_percent:
            return PoolCheck(Health.OK)
        full = f"is full to {stock.data_percent} % (metadata {stock.metadata_percent} %)"
        told = f"thin pool {self._settings.vg}/{self._settings.thin_pool} {full}"
        return PoolCheck(Health.DEGRADED, f"{told}; extend it, or delete: guests stop when it is full")

    def close(self) -> None:
        """Nothing is held."""

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        """Grow the device; QEMU is told afterwards, if it has it."""
        del online
        return self._volumes.expand(volume, size, self._traits)

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        return self._volumes.relabel(volume, labels)

    def capacity(self) -> Capacity:
        """The thin pool's space; nothing is free when its metadata are full."""
        seen = self._volumes.look("measure the pool")
        free = 0 if seen.stock.metadata_percent >= self._settings.refuse_percent else seen.stock.free
        return Capacity(seen.stock.size, free, seen.promised(), int(self._settings.oversubscription * seen.stock.size))

    # -- snapshots

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Cut a thin snapshot."""
        return self._volumes.snapshot(volume, spec)

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Delete it; clones and newer ones keep their content."""
        self._volumes.unsnapshot(volume, snapshot_uid)

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Oldest first."""
        seen = self._volumes.look(f"list the snapshots of volume {volume.name}")
        seen.find(volume)
        return [one.snapshot() for one in seen.snapshots(volume.uid)]

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """Go back; every snapshot stays."""
        return self._volumes.revert(volume, snapshot_uid, token)

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """Nothing: clones share their blocks. Raises NotFound."""
        if spec.source:
            doing, source = f"clone volume {spec.name}", spec.source
            seen, parent = self._volumes.look(doing), VolumeId(source.volume, source.volume_uid)
            seen.find(parent)
            if source.snapshot_uid:
                seen.cut(parent, source.snapshot_uid)
        return 0

    def children(self, volume: VolumeId) -> Sequence[str]:
        """None: a thin volume that shares blocks with another does not need it."""
        del volume
        return ()

    # -- bytes

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """The device."""
        return _block(self._opened(volume, snapshot_uid, writable, f"image of volume {volume.name}"))

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        """Write an image over all of it."""
        doing = f"fill volume {volume.name}"
        found = self._opened(volume, "", True, doing)
        media.fill(found.dm_uuid, found.size, path, source_format, thin=found.thin, progress=progress, doing=doing)

    def complete(self, volume: VolumeId) -> Volume:
        """It is a volume like others."""
        return self._volumes.complete(volume)

    def extract_to_file(self, volume: VolumeId, snapshot_uid: str, path: str, progress: Callable[[float], None]) -> None:
        """Write its bytes to a file."""
        doing = f"extract volume {volume.name}"
        found = self._opened(volume, snapshot_uid, False, doing)
        media.extract(found.dm_uuid, found.size, path, progress, doing)

    def _opened(self, volume: VolumeId, snapshot_uid: str, writable: bool, doing: str) -> Logical:
        found = self._volumes.opened(volume, snapshot_uid, doing)
        if writable and not found.content.incomplete:
            raise Precondition(f"{doing}: volume {volume.name} is complete; images are written into new volumes", reason="NOT_INCOMPLETE")
        return found


def _block(one: Logical) -> LocalBlock:
    return LocalBlock(media.device(one.dm_uuid), one.dm_uuid, one.size)
