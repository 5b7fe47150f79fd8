"""The backend: every facet of a pool of RBD images, each method a few words to the parts of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from volgate.backend import (
    Adopts,
    ChangedBlocks,
    Clones,
    Extent,
    Extracts,
    Fences,
    Foreign,
    GroupMember,
    Groups,
    Holder,
    Holders,
    Measures,
    PathsSeen,
    PoolCheck,
    PoolContext,
    Relabels,
    Resizes,
    Reverts,
    SnapshotSpec,
    Traits,
    VolumeId,
)
from volgate.connection import Connection
from volgate.errors import NotFound, OutOfSpace, Precondition, Unreachable, VolgateError
from volgate.model import Capacity, Format, Health, Labels, Path, Snapshot, Volume, VolumeSpec
from volgate_plugins.ceph_rbd import transfer
from volgate_plugins.ceph_rbd.adoption import Adoption
from volgate_plugins.ceph_rbd.changes import Comparing
from volgate_plugins.ceph_rbd.fencing import Fencing
from volgate_plugins.ceph_rbd.groups import Grouping
from volgate_plugins.ceph_rbd.holding import holders_of
from volgate_plugins.ceph_rbd.paths import paths_of, unanswered
from volgate_plugins.ceph_rbd.settings import CephSettings
from volgate_plugins.ceph_rbd.snapshots import Snapshotting
from volgate_plugins.ceph_rbd.sources import Sources
from volgate_plugins.ceph_rbd.space import Space
from volgate_plugins.ceph_rbd.store import Store
from volgate_plugins.ceph_rbd.trash import Sweeper
from volgate_plugins.ceph_rbd.volumes import Volumes, connected

__all__ = ["CephRbd"]

_SECTOR = 512
_MOST_OBJECTS = 1 << 27


class CephRbd(Resizes, Reverts, Clones, Measures, Extracts, Adopts, Relabels, PathsSeen, Holders, Groups, ChangedBlocks, Fences):
    """A pool of RBD images."""

    def __init__(self, settings: CephSettings, context: PoolContext) -> None:
        """Open the pool. Raises Unreachable, Denied, NotFound (pool, namespace), Precondition (marker, fsid), InvalidRequest."""
        self._store = Store(settings, context)
        self._snapshots = Snapshotting(self._store)
        self._sources = Sources(self._store, self._snapshots)
        self._space = Space(self._store)
        self._volumes = Volumes(self._store, self._sources, self._space)
        self._adoption = Adoption(self._store)
        self._groups = Grouping(self._store, self._snapshots)
        self._comparing = Comparing(self._store, self._snapshots)
        self._fencing = Fencing(self._store)
        self._sweeper = Sweeper(self._store, self._groups)
        self._sweeper.wake()

    @property
    def traits(self) -> Traits:
        """What holds for RBD images."""
        settings = self._store.settings
        return Traits(
            formats=(Format.RAW,),
            grain=_SECTOR,
            minimum=_SECTOR,
            maximum=settings.object_size * _MOST_OBJECTS,
            shared=True,
            independent_clones=True,
            online_snapshots="native",
            long_reverts=True,
            max_depth=settings.max_depth,
            carrier="image metadata",
            notes=("RBD images are thin: thick volumes are not made",),
        )

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Make an image, or a clone."""
        return self._volumes.create(spec, self.traits.rounded(spec.size))

    def delete_volume(self, volume: VolumeId) -> None:
        """Move the image to the trash; it is purged in the background."""
        self._volumes.delete(volume)
        self._sweeper.wake()

    def get_volume(self, name: str) -> Volume:
        """Read the volume."""
        return self._volumes.get(name)

    def list_volumes(self) -> Iterator[Volume]:
        """Yield every volume."""
        yield from self._volumes.every()

    def connection(self, volume: VolumeId, *, host: str) -> Connection:  # noqa: ARG002 - every host reaches the cluster alike
        """Say which image it is and how it is reached."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            if found.content.incomplete:
                raise Precondition(f"volume {volume.name} is still being filled", reason="NOT_READY")
            return connected(self._store, link, found)

    def paths(self, volume: VolumeId) -> Sequence[Path]:
        """Every station of the image; monitors that failed where the cluster does not answer."""
        doing = f"way to volume {volume.name}"
        try:
            with self._store.use() as link:
                found = self._store.find(link, volume)
                with self._store.image(link, found.header.id, doing, read_only=True) as image:
                    holders = holders_of(self._store, link, image, doing)
                return paths_of(self._store.settings, link, found.image, found.header, holders)
        except Unreachable as error:
            return unanswered(self._store.settings, error)

    def check(self) -> PoolCheck:
        """Look whether the pool answers and takes writes; what was left to be purged is."""
        try:
            with self._store.use() as link:
                self._store.pool.prove(link)
                link.noted = 0.0
                self._store.pool.note_client(link)
        except OutOfSpace as error:
            return PoolCheck(Health.DEGRADED, error.message)
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)
        self._sweeper.wake()
        return PoolCheck(Health.OK)

    def close(self) -> None:
        """Let go of the cluster."""
        self._sweeper.close()
        with contextlib.suppress(VolgateError), self._store.use() as link:
            self._store.pool.drop_client(link)
        self._store.cluster.close()

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:  # noqa: ARG002 - librbd grows it under a guest too
        """Grow the image."""
        return self._volumes.expand(volume, self.traits.rounded(size))

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Cut a snapshot, under a guest too."""
        return self._snapshots.create(volume, spec)

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Remove a snapshot; with the last one of a group that goes too."""
        if group := self._snapshots.delete(volume, snapshot_uid):
            with self._store.use() as link:
                self._groups.forget(link, group)

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Tell the snapshots, oldest first."""
        return self._snapshots.every(volume)

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """Roll back; every snapshot stays."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            if token in found.content.reverts:
                return self._store.volume(link, found)
            one = self._snapshots.one(link, found, snapshot_uid)
        return self._volumes.revert(volume, one, token)

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """Nothing, until the family is too deep or has too many snapshots."""
        if spec.source is None:
            return 0
        with self._store.use() as link:
            origin = self._sources.origin(link, spec)
            return origin.header.size if self._sources.copies(link, spec, origin) else 0

    def children(self, volume: VolumeId) -> Sequence[str]:  # noqa: ARG002 - none ever does
        """Nobody depends on a volume: its image stays in the trash for as long as a clone needs it."""
        return ()

    def capacity(self) -> Capacity:
        """Measure the pool."""
        with self._store.use() as link:
            return self._space.capacity(link)

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """The image, or a snapshot of it."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            if writable and not found.content.incomplete:
                raise Precondition(f"volume {volume.name} is complete; only an import writes to an image", reason="NOT_INCOMPLETE")
            snapshot = self._snapshots.one(link, found, snapshot_uid).reached_by if snapshot_uid else ""
            return connected(self._store, link, found, snapshot=snapshot)

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        """Write the file's data into the image, which is emptied first."""
        store, doing = self._store, f"fill volume {volume.name}"
        with store.use() as link:
            found = store.find(link, volume)
            if not found.content.incomplete:
                raise Precondition(f"volume {volume.name} is complete already", reason="NOT_INCOMPLETE")
            size, settings = self.traits.rounded(found.tag.spec.requested_size), store.settings
            with store.image(link, found.header.id, doing) as image:
                transfer.empty(image, size, doing)
                transfer.fill(
                    image, size, path, source_format, width=settings.transfers, staging=settings.staging, progress=progress, doing=doing
                )

    def extract_to_file(self, volume: VolumeId, snapshot_uid: str, path: str, progress: Callable[[float], None]) -> None:
        """Read what the image holds into a sparse file."""
        store, doing = self._store, f"export volume {volume.name}"
        with store.use() as link:
            found = store.find(link, volume)
            at = self._snapshots.one(link, found, snapshot_uid).id if snapshot_uid else 0
            with store.image(link, found.header.id, doing, snapshot_id=at, read_only=True) as image:
                transfer.extract(image, path, width=store.settings.transfers, progress=progress, doing=doing)

    def complete(self, volume: VolumeId) -> Volume:
        """Mark the volume as ready."""
        return self._volumes.complete(volume)

    def list_foreign(self) -> Iterator[Foreign]:
        """Yield images of others, and deleted volumes that can come back."""
        yield from self._adoption.every()

    def adopt_volume(self, locator: str, spec: VolumeSpec) -> Volume:
        """Make an image a volume."""
        return self._adoption.adopt(locator, spec)

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        return self._volumes.relabel(volume, labels)

    def holders(self, volume: VolumeId) -> Sequence[Holder]:
        """Tell who watches the image or holds its lock."""
        doing = f"look who has volume {volume.name} open"
        with self._store.use() as link:
            found = self._store.find(link, volume)
            if found.tag.uid != volume.uid:
                raise NotFound(f"volume {volume.name} of uid {volume.uid} does not exist")
            with self._store.image(link, found.header.id, doing, read_only=True) as image:
                return holders_of(self._store, link, image, doing)

    def create_snapshot_group(self, group_uid: str, members: Sequence[GroupMember]) -> Sequence[Snapshot]:
        """Cut snapshots of several volumes at one moment, under guests too."""
        return self._groups.create(group_uid, members)

    def changed_blocks(
        self, volume: VolumeId, base_snapshot_uid: str, snapshot_uid: str, *, offset: int, length: int, exact: bool
    ) -> Iterator[Extent]:
        """Tell what differs; not exactly, whole objects."""
        yield from self._comparing.changed(volume, base_snapshot_uid, snapshot_uid, offset=offset, length=length, exact=exact)

    def fence(self, addresses: Sequence[str], volumes: Sequence[VolumeId]) -> None:
        """Put addresses on the cluster's blocklist."""
        self._fencing.fence(addresses, volumes)

    def unfence(self, addresses: Sequence[str]) -> None:
        """Take them off it."""
        self._fencing.unfence(addresses)

    def fenced(self, addresses: Sequence[str]) -> Sequence[str]:
        """Tell which are on it."""
        return self._fencing.fenced(addresses)
