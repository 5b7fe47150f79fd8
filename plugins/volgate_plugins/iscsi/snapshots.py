"""Published volumes with snapshots, which the pool below cuts at one moment, also while hosts write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from volgate.backend import Clones, Extracts, PoolContext, Reverts, SnapshotSpec, Traits, VolumeId
from volgate.model import Snapshot, Volume, VolumeSpec
from volgate_plugins.directory import Directory
from volgate_plugins.iscsi.published import Published
from volgate_plugins.iscsi.settings import IscsiSettings
from volgate_plugins.lvm import Lvm

__all__ = ["PublishedLogical", "PublishedWithSnapshots"]


class PublishedWithSnapshots(Published, Reverts, Clones):
    """With snapshots, and what follows from them."""

    def __init__(self, settings: IscsiSettings, context: PoolContext, below: Directory | Lvm) -> None:
        """As `Published`."""
        super().__init__(settings, context, below)
        self._cuts = below

    @property
    def traits(self) -> Traits:
        """A file whose blocks are shared, or a thin volume, is cut at one moment."""
        return replace(super().traits, online_snapshots="native")

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Cut it."""
        return self._cuts.create_snapshot(volume, spec)

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Delete it."""
        self._cuts.delete_snapshot(volume, snapshot_uid)

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Oldest first."""
        return self._cuts.list_snapshots(volume)

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """Go back; what is below is another file or device then, so that nobody may reach it meanwhile."""
        with self._publishing.alone(volume, f"revert volume {volume.name}"):
            return self._cuts.revert_volume(volume, snapshot_uid, token=token)

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """What the pool below copies."""
        return self._cuts.bytes_to_copy(spec)

    def children(self, volume: VolumeId) -> Sequence[str]:
        """Those that the pool below knows."""
        return self._cuts.children(volume)


class PublishedLogical(PublishedWithSnapshots, Extracts):
    """In a volume group."""

    def __init__(self, settings: IscsiSettings, context: PoolContext, below: Lvm) -> None:
        """As `Published`."""
        super().__init__(settings, context, below)
        self._group = below

    def extract_to_file(self, volume: VolumeId, snapshot_uid: str, path: str, progress: Callable[[float], None]) -> None:
        """Write its bytes to a file."""
        self._group.extract_to_file(volume, snapshot_uid, path, progress)
