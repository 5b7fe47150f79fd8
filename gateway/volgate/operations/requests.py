"""The mutations as typed values: what the edge makes of a message, what the journal keeps, what a use case gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from volgate.model import DiskOptions, Format, Labels, Provisioning, Qos
from volgate.names import PoolName, SnapshotName, VolumeName
from volgate.operations.scope import EVERYTHING, Scope

__all__ = [
    "AdoptVolume",
    "AttachVolume",
    "Caller",
    "CollapseLayers",
    "CreateSnapshot",
    "CreateSnapshotGroup",
    "CreateVolume",
    "DeleteSnapshot",
    "DeleteVolume",
    "DetachVolume",
    "ExpandVolume",
    "ExportVolume",
    "FenceHost",
    "ImportVolume",
    "Plan",
    "Request",
    "RevertVolume",
    "UnfenceHost",
    "UpdateVolume",
]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: an id of the request for its own repeats, a principal for these and the audit, the W3C trace context, its scope."""

    request_id: str = ""
    principal: str = "local"
    trace: str = ""
    scope: Scope = EVERYTHING


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mutation would do: its steps, the space it takes at once (bytes), who blocks it (resource names)."""

    steps: tuple[str, ...]
    space: int = 0
    blockers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Make a volume. `size` 0 with a source means the source's; `format` None means the pool's default (or the source's)."""

    method: ClassVar[str] = "CreateVolume"
    pool: str
    volume: str
    size: int
    format: Format | None = None
    provisioning: Provisioning = Provisioning.THIN
    source: str = ""
    labels: Labels = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(VolumeName(self.pool, self.volume))


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Delete a volume; `uid` "" means whatever has the name."""

    method: ClassVar[str] = "DeleteVolume"
    name: VolumeName
    uid: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(self.name)


@dataclass(frozen=True, slots=True)
class ExpandVolume:
    """Grow a volume to `size` bytes."""

    method: ClassVar[str] = "ExpandVolume"
    name: VolumeName
    size: int
    uid: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(self.name)


@dataclass(frozen=True, slots=True)
class UpdateVolume:
    """Replace the labels (None: they stay), and the limits of the attachments (None: they stay)."""

    method: ClassVar[str] = "UpdateVolume"
    name: VolumeName
    labels: Labels | None
    uid: str = ""
    qos: Qos | None = None

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(self.name)


@dataclass(frozen=True, slots=True)
class RevertVolume:
    """Go back to a snapshot of the volume."""

    method: ClassVar[str] = "RevertVolume"
    name: VolumeName
    snapshot: str
    uid: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(self.name)


@dataclass(frozen=True, slots=True)
class ImportVolume:
    """Make a volume of an image file. `path` is a spooled upload (`spooled`, removed at the end) or an allowed server-side path."""

    method: ClassVar[str] = "ImportVolume"
    pool: str
    volume: str
    source_format: Format
    path: str
    spooled: bool
    digest: str = ""
    format: Format | None = None
    size: int = 0
    labels: Labels = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(VolumeName(self.pool, self.volume))


@dataclass(frozen=True, slots=True)
class ExportVolume:
    """Write a volume, or one of its snapshots, to the new file `path` on this host."""

    method: ClassVar[str] = "ExportVolume"
    volume: VolumeName
    path: str
    format: Format
    snapshot: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked: the volume."""
        return str(self.volume)


@dataclass(frozen=True, slots=True)
class AdoptVolume:
    """Make a volume of a foreign object."""

    method: ClassVar[str] = "AdoptVolume"
    pool: str
    locator: str
    volume: str
    format: Format
    labels: Labels = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(VolumeName(self.pool, self.volume))


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    """Cut a snapshot."""

    method: ClassVar[str] = "CreateSnapshot"
    name: SnapshotName
    quiesce: bool = False
    labels: Labels = field(default_factory=dict)
    volume_uid: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked: the volume."""
        return str(self.name.of)


@dataclass(frozen=True, slots=True)
class CreateSnapshotGroup:
    """Cut snapshots of several volumes at one moment. `snapshots` are pairs of a volume and the snapshot's name, by volume."""

    method: ClassVar[str] = "CreateSnapshotGroup"
    pool: str
    snapshots: tuple[tuple[str, str], ...]
    labels: Labels = field(default_factory=dict)
    volume_uids: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """What it is about; locked are its volumes, not the pool."""
        return str(PoolName(self.pool))

    @property
    def volumes(self) -> tuple[str, ...]:
        """The resources that are locked."""
        return tuple(str(VolumeName(self.pool, volume)) for volume, _ in self.snapshots)


@dataclass(frozen=True, slots=True)
class DeleteSnapshot:
    """Delete a snapshot."""

    method: ClassVar[str] = "DeleteSnapshot"
    name: SnapshotName
    uid: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked: the volume."""
        return str(self.name.of)


@dataclass(frozen=True, slots=True)
class AttachVolume:
    """Make a volume a disk of a domain. `host` "" means the only host; `domain` is a name or a uuid."""

    method: ClassVar[str] = "AttachVolume"
    volume: VolumeName
    host: str
    domain: str
    options: DiskOptions
    prepare_only: bool = False
    volume_uid: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked: the volume."""
        return str(self.volume)


@dataclass(frozen=True, slots=True)
class DetachVolume:
    """Take the disk away. `volume` is filled in by the gateway from the record: it is what is locked."""

    method: ClassVar[str] = "DetachVolume"
    attachment: str
    wait_seconds: int = 20
    volume: str = ""

    @property
    def target(self) -> str:
        """The resource that is locked: the volume, if the attachment is known."""
        return self.volume or f"attachments/{self.attachment}"


@dataclass(frozen=True, slots=True)
class FenceHost:
    """Keep a host's clients out of the pools that can do that; `addresses` () means those that the storage sees."""

    method: ClassVar[str] = "FenceHost"
    host: str
    addresses: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return f"hosts/{self.host}"


@dataclass(frozen=True, slots=True)
class UnfenceHost:
    """Let a host's clients in again; `assume_restarted`: the caller knows that what was fenced runs no more."""

    method: ClassVar[str] = "UnfenceHost"
    host: str
    assume_restarted: bool = False

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return f"hosts/{self.host}"


@dataclass(frozen=True, slots=True)
class CollapseLayers:
    """Internal: merge layers that nobody needs any more."""

    method: ClassVar[str] = "CollapseLayers"
    name: VolumeName
    uid: str

    @property
    def target(self) -> str:
        """The resource that is locked."""
        return str(self.name)


Request = (
    CreateVolume
    | DeleteVolume
    | ExpandVolume
    | UpdateVolume
    | RevertVolume
    | ImportVolume
    | ExportVolume
    | AdoptVolume
    | CreateSnapshot
    | CreateSnapshotGroup
    | DeleteSnapshot
    | AttachVolume
    | DetachVolume
    | FenceHost
    | UnfenceHost
    | CollapseLayers
)
