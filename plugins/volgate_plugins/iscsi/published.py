"""A pool of another kind, whose volumes hosts reach through a target: what the volumes are is that pool's affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from volgate.backend import (
    DataPath,
    FencesHosts,
    Initiator,
    Measures,
    PathsSeen,
    PoolCheck,
    PoolContext,
    Publishes,
    Relabels,
    Resizes,
    Traits,
    VolumeId,
)
from volgate.connection import Connection, IscsiLun, LocalBlock, LocalFile
from volgate.errors import Unsupported
from volgate.model import Capacity, Format, Health, Labels, Path, PathState, Volume, VolumeSpec
from volgate_plugins.directory import Directory
from volgate_plugins.iscsi.identity import LUN
from volgate_plugins.iscsi.publishing import Publishing
from volgate_plugins.iscsi.settings import IscsiSettings
from volgate_plugins.lvm import Lvm

__all__ = ["Published"]


class Published(Resizes, Measures, Relabels, DataPath, PathsSeen, Publishes, FencesHosts):
    """Raw volumes without snapshots."""

    def __init__(self, settings: IscsiSettings, context: PoolContext, below: Directory | Lvm) -> None:
        """Put back what a boot took away. `below` is the pool that the volumes lie in.

        Raises Precondition (LIO_MISSING). What cannot be put back makes the pool degraded, and is tried again at each check.
        """
        self._settings, self._below = settings, below
        self._publishing = Publishing(settings, context, lambda volume: self._bytes(volume, "").path)
        self._publishing.put_back()

    @property
    def traits(self) -> Traits:
        """Those of the pool below, for raw volumes and many hosts."""
        return replace(
            self._below.traits, formats=(Format.RAW,), shared=True, independent_clones=True, online_snapshots="", max_depth=0, notes=()
        )

    # -- volumes

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Make it; nobody reaches it yet."""
        if spec.format is not Format.RAW:
            raise Unsupported(f"create volume {spec.name}: format {spec.format} cannot be made here; use raw", field="format")
        return self._seen(self._below.create_volume(spec))

    def delete_volume(self, volume: VolumeId) -> None:
        """Delete one that is published to nobody."""
        with self._publishing.alone(volume, f"delete volume {volume.name}"):
            self._below.delete_volume(volume)

    def get_volume(self, name: str) -> Volume:
        """Read it."""
        return self._seen(self._below.get_volume(name))

    def list_volumes(self) -> Iterator[Volume]:
        """Read them all."""
        for volume in self._below.list_volumes():
            yield self._seen(volume)

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        """Grow it, then what is published of it; hosts look afterwards."""
        del online  # nobody but the target has open what lies below
        grown = self._below.expand_volume(volume, size, online=False)
        self._publishing.grow(volume)
        return self._seen(grown)

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        return self._seen(self._below.relabel_volume(volume, labels))

    def capacity(self) -> Capacity:
        """The space of the pool below."""
        return self._below.capacity()

    def check(self) -> PoolCheck:
        """Look at the pool below, and put back what somebody took away of the targets."""
        found = self._below.check()
        problems = self._publishing.put_back() if found.health is not Health.DOWN else []
        return PoolCheck(Health.DEGRADED, "; ".join(problems)) if problems and found.health is Health.OK else found

    def close(self) -> None:
        """What is published stays: hosts use it."""
        self._below.close()

    # -- bytes: of what lies below, never through a session

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """The file or device."""
        return self._below.image(volume, snapshot_uid, writable=writable)

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        """Fill it."""
        self._below.fill_from_file(volume, path, source_format, progress)

    def complete(self, volume: VolumeId) -> Volume:
        """It is a volume like others."""
        return self._below.complete(volume)

    # -- hosts

    def connection(self, volume: VolumeId, *, host: str) -> Connection:
        """The only unit of a target of its own. Whether it is published to the host is not asked here."""
        found, unit, settings = self._bytes(volume, host), self._publishing.unit(volume), self._settings
        size = min(found.size, self._publishing.target.size(unit) or found.size)
        return IscsiLun(unit.wwid, settings.ways(unit.target), LUN, size, settings.multipath, settings.proof())

    def publish(self, volume: VolumeId, initiator: Initiator) -> None:
        """By its IQN."""
        self._publishing.publish(volume, initiator)

    def unpublish(self, volume: VolumeId, host: str) -> None:
        """Its sessions end."""
        self._publishing.unpublish(volume, host)

    def published(self, volume: VolumeId) -> Sequence[str]:
        """By the record."""
        return self._publishing.hosts(volume)

    def fence_host(self, initiator: Initiator, volumes: Sequence[VolumeId]) -> None:
        """By its IQN, at every target of the pool."""
        del volumes  # the records tell more
        self._publishing.fence(initiator)

    def unfence_host(self, host: str) -> None:
        """By its name."""
        self._publishing.unfence(host)

    def fenced_hosts(self) -> Sequence[str]:
        """By the notes."""
        return self._publishing.fenced()

    def paths(self, volume: VolumeId) -> Sequence[Path]:
        """The target's view: what lies below, each portal (on standby while nobody may come), each initiator that is logged in."""
        found, unit, target = self._bytes(volume, ""), self._publishing.unit(volume), self._publishing.target
        kind = "file" if isinstance(found, LocalFile) else "block"
        portal = PathState.ACTIVE_OPTIMIZED if target.initiators(unit) else PathState.STANDBY
        return [
            Path(kind, "", unit.target, found.path, PathState.ACTIVE_OPTIMIZED),
            *(Path("iscsi", "", str(way), found.path, portal) for way in self._settings.ways(unit.target)),
            *(
                Path("iscsi", name, unit.target, found.path, PathState.ACTIVE_OPTIMIZED, facts={"address": address})
                for name, address in target.sessions(unit)
            ),
        ]

    def _bytes(self, volume: VolumeId, host: str) -> LocalFile | LocalBlock:
        found = self._below.connection(volume, host=host)
        assert isinstance(found, LocalFile | LocalBlock)
        return found

    def _seen(self, volume: Volume) -> Volume:
        """A volume is as large as hosts see it: what lies below may have grown before the target did."""
        unit = self._publishing.unit(VolumeId(volume.name, volume.uid)) if volume.uid else None
        size = self._publishing.target.size(unit) if unit else 0
        return replace(volume, size=min(size, volume.size)) if size else volume
