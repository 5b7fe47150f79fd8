"""The facets: what a backend is (`Backend`) and what it can do besides (the rest). A capability is a base class.

Every method is plain blocking Python, may be called from many threads, and is idempotent: called again after a crash, with the
same uid, it finds what the dead call left half-made and finishes it. The gateway holds the object's lock, so one volume sees one
mutation at a time. Every error is one of :mod:`volgate.errors`. Sizes are bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from volgate.backend.traits import Traits
from volgate.backend.versions import adapt
from volgate.connection import Connection
from volgate.model import Capacity, Format, Health, Labels, Path, Snapshot, Volume, VolumeSpec

__all__ = [
    "FACET_NAMES",
    "Adopts",
    "Backend",
    "ChangedBlocks",
    "Clones",
    "DataPath",
    "Extent",
    "Extracts",
    "Fences",
    "Foreign",
    "GroupMember",
    "Groups",
    "Holder",
    "Holders",
    "Initiator",
    "Measures",
    "Overlay",
    "Overlays",
    "PathsSeen",
    "PoolCheck",
    "Publishes",
    "Relabels",
    "Resizes",
    "Reverts",
    "SnapshotSpec",
    "Snapshots",
    "VolumeId",
    "capabilities",
]


@dataclass(frozen=True, slots=True)
class VolumeId:
    """Names one volume for good: the name may be used again, the uid never is."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSpec:
    """A snapshot to be cut; the journal's first commit drew the uid."""

    name: str
    uid: str
    labels: Labels = field(default_factory=dict)
    quiesced: bool = False


@dataclass(frozen=True, slots=True)
class PoolCheck:
    """The result of a check of a pool: its health and, unless it is ok, why and what to do."""

    health: Health
    message: str = ""


@dataclass(frozen=True, slots=True)
class Foreign:
    """An object in the pool without our tag: listed, never touched. `locator` is what AdoptVolume takes."""

    locator: str
    size: int
    format: Format | None
    reason: str


class Backend(ABC):
    """Every pool."""

    def __init_subclass__(cls) -> None:
        """A class that was written for an older version of a facet gets what it lacks, made of what it has."""
        super().__init_subclass__()
        adapt(cls)

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """The facts that hold while this pool is open."""

    @abstractmethod
    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Create the volume durably with its owner tag, or finish a creation of the same uid; return what exists.

        Raises OutOfSpace, OutOfRange, Unsupported (format, provisioning), NotFound (source), AlreadyExists (same name, other uid).
        """

    @abstractmethod
    def delete_volume(self, volume: VolumeId) -> None:
        """Delete the volume; success if no volume of that uid exists. Raises InUse naming snapshots and children that hold it."""

    @abstractmethod
    def get_volume(self, name: str) -> Volume:
        """Read the volume from the storage. Raises NotFound."""

    @abstractmethod
    def list_volumes(self) -> Iterator[Volume]:
        """Yield every volume with our tag, in order of name. A damaged one is yielded with state failed and its problem."""

    @abstractmethod
    def connection(self, volume: VolumeId, *, host: str) -> Connection:
        """Say how `host` reaches the volume, its identity included. Raises NotFound, Precondition (not ready, identity)."""

    @abstractmethod
    def check(self) -> PoolCheck:
        """Look whether the pool can serve now: marker present and ours, storage answers, writable. Never raises for a down pool."""

    @abstractmethod
    def close(self) -> None:
        """Release what `open` took; called once."""


class Resizes(Backend):
    """Volumes can grow."""

    @abstractmethod
    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        """Grow to at least `size`; smaller or equal is success without change.

        `online`: a guest holds the volume. Where QEMU must grow the image itself (files), check the room, record the asked size
        and leave the image alone: the host grows it through QEMU afterwards, and `get_volume` then reads the size back.
        Raises OutOfSpace, OutOfRange.
        """


class Snapshots(Backend):
    """Points in time of a detached volume, or of an attached one where traits.online_snapshots is native."""

    @abstractmethod
    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Cut a snapshot, or return the one of the same uid. Raises AlreadyExists (same name, other uid), Precondition, OutOfSpace."""

    @abstractmethod
    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Delete it; success if it is gone. Raises InUse naming children that hold it. Newer snapshots keep their content."""

    @abstractmethod
    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Return the snapshots of one volume, oldest first."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A prepared new top layer of an attached volume: the host makes QEMU write to `top` instead of `base`."""

    top: Connection
    base: str


class Overlays(Snapshots):
    """Snapshots of an attached volume by a new top layer; the plugin owns the layers, the host switches QEMU."""

    @abstractmethod
    def prepare_overlay(self, volume: VolumeId, spec: SnapshotSpec) -> Overlay:
        """Make the overlay (idempotent by the snapshot's uid), durable but not yet the volume's top."""

    @abstractmethod
    def finish_overlay(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Record the overlay as the top and the old top as the snapshot: QEMU writes to it now. Idempotent."""

    @abstractmethod
    def abandon_overlay(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Remove a prepared overlay that QEMU never switched to; success if none."""

    @abstractmethod
    def collapse_layers(self, volume: VolumeId) -> int:
        """Merge layers that no snapshot and no child needs any more, while the volume is detached; return how many went."""


class Reverts(Snapshots):
    """A detached volume can go back."""

    @abstractmethod
    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """Set content and size as at the snapshot; `token` names this revert, a repeat with it changes nothing more.

        Newer snapshots stay, or the call raises InUse naming them.
        """


class Clones(Snapshots):
    """`create_volume` accepts a source: a snapshot, or a detached volume, of the same pool."""

    @abstractmethod
    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """Say how many bytes this clone copies, which is what it takes at once if it is thin; 0: it shares them all with its source.

        Raises NotFound (source). Since version 2; version 1 had `clone_is_copy(spec) -> bool` in its place.
        """

    @abstractmethod
    def children(self, volume: VolumeId) -> Sequence[str]:
        """Return the names of the volumes that depend on this volume or its snapshots."""


class Measures(Backend):
    """Capacity is known."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Measure the pool now."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a volume: `data` is False where it reads as zeroes."""

    offset: int
    length: int
    data: bool


class DataPath(Backend):
    """The bytes of a volume or a snapshot, for import, export and copies.

    Local image files are the first kind: a path and its explicit format, opened by the gateway's own tools.
    """

    @abstractmethod
    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """Return where the bytes are. `writable` only for an incomplete volume that an import fills."""

    @abstractmethod
    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        """Fill an incomplete volume from an already inspected image file, durably (fsync); idempotent (starts again).

        `progress` is called with the done fraction, 0 to 1; it raises Cancelled when the operation is to stop.
        """

    @abstractmethod
    def complete(self, volume: VolumeId) -> Volume:
        """Mark an incomplete volume as ready, durably."""


class Extracts(DataPath):
    """The bytes are reached through the backend alone: no file holds them, so it writes one."""

    @abstractmethod
    def extract_to_file(self, volume: VolumeId, snapshot_uid: str, path: str, progress: Callable[[float], None]) -> None:
        """Write the content to `path`, a new sparse raw file of the volume's size, durably (fsync); idempotent (starts again).

        `progress` is called with the done fraction, 0 to 1; it raises Cancelled when the operation is to stop. Ended in the middle, it
        leaves nothing beside `path`. Raises NotFound.
        """


class Adopts(Backend):
    """Objects that others made can become volumes."""

    @abstractmethod
    def list_foreign(self) -> Iterator[Foreign]:
        """Yield objects without our tag."""

    @abstractmethod
    def adopt_volume(self, locator: str, spec: VolumeSpec) -> Volume:
        """Tag the object as volume `spec.name`/`spec.uid` without touching its data. Raises NotFound, Precondition, AlreadyExists."""


class Relabels(Backend):
    """Labels live on the storage."""

    @abstractmethod
    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels durably."""


class PathsSeen(Backend):
    """The backend's own view of the paths to a volume."""

    @abstractmethod
    def paths(self, volume: VolumeId) -> Sequence[Path]:
        """Return every way to the volume and its state, now."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A client of the storage that has a volume open: its name there, and whether it holds the write lock.

    `address` is its network address: an IP address, perhaps with `:PORT` or `:PORT/NONCE` behind it.
    """

    client: str
    address: str
    locks: bool = False


class Holders(Backend):
    """The storage knows who has a volume open."""

    @abstractmethod
    def holders(self, volume: VolumeId) -> Sequence[Holder]:
        """Return each client that has the volume open for writing now, without the backend itself, dead or alive. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One snapshot of a group: the volume, and what is to be cut of it."""

    volume: VolumeId
    spec: SnapshotSpec


class Groups(Snapshots):
    """Snapshots of several volumes of the pool at one moment."""

    @abstractmethod
    def create_snapshot_group(self, group_uid: str, members: Sequence[GroupMember]) -> Sequence[Snapshot]:
        """Cut all snapshots at one moment, in the order of `members`, or none; what exists of the same uids is returned.

        No write that a guest issued after another that is missing is in them. Raises as `create_snapshot`.
        """


class ChangedBlocks(Snapshots):
    """The storage knows what changed between two points in time."""

    @abstractmethod
    def changed_blocks(
        self, volume: VolumeId, base_snapshot_uid: str, snapshot_uid: str, *, offset: int, length: int, exact: bool
    ) -> Iterator[Extent]:
        """Yield what differs between two snapshots of a volume, in order of offset, within `offset` and `length` (bytes).

        `base_snapshot_uid` "": everything that was ever written; `snapshot_uid` "": the volume as it is now. `exact`: as exactly as the
        storage knows; False may tell whole objects of it, which is faster. More than what changed may be told, never less.
        Raises NotFound, Precondition (BASE_NOT_OLDER).
        """


class Fences(Backend):
    """The storage can keep clients out, whatever they still try."""

    @abstractmethod
    def fence(self, addresses: Sequence[str], volumes: Sequence[VolumeId]) -> None:
        """Keep every client at these network addresses (IP) from the pool until `unfence`, and break the locks they hold on `volumes`.

        On return it is proven: no write of theirs can land any more. Idempotent. Raises Precondition for an address of the
        backend's own, InvalidRequest for no address.
        """

    @abstractmethod
    def unfence(self, addresses: Sequence[str]) -> None:
        """Let clients at these addresses in again; success for one that is not fenced. Clients that were fenced must be started anew."""

    @abstractmethod
    def fenced(self, addresses: Sequence[str]) -> Sequence[str]:
        """Return those of the addresses that are fenced now."""


@dataclass(frozen=True, slots=True)
class Initiator:
    """A host, and the names by which it logs in to storage; "" for what it has none of.

    `key`: what it registers at disks that are reserved (SPC-4 persistent reservations), 0 if that is not known.
    """

    host: str
    iqn: str = ""
    nqn: str = ""
    key: int = 0


class Publishes(Backend):
    """A volume is reached by the hosts alone that it is published to, before they connect and until they have let go."""

    @abstractmethod
    def publish(self, volume: VolumeId, initiator: Initiator) -> None:
        """Let a host reach the volume by what `connection` says, durably; success if it may already.

        Raises NotFound, Precondition (NOT_READY, INITIATOR_MISSING: the host has no name of the kind that is needed).
        """

    @abstractmethod
    def unpublish(self, volume: VolumeId, host: str) -> None:
        """Keep a host out again, whatever it still holds; success if it may not reach the volume, or no volume of that uid exists.

        On return nothing that it sends is carried out any more. While a volume is published it is not deleted and not reverted: InUse.
        """

    @abstractmethod
    def published(self, volume: VolumeId) -> Sequence[str]:
        """Return the names of the hosts that the volume is published to; none if it does not exist."""


class FencesHosts(Backend):
    """The storage can keep a host out by the names that it logs in by, or by its key, whatever it still tries."""

    @abstractmethod
    def fence_host(self, initiator: Initiator, volumes: Sequence[VolumeId]) -> None:
        """Keep a host out until `unfence_host`. `volumes`: all that it has attachments of by the gateway's record; more need not be known.

        A backend that publishes keeps it out of every volume: none is published to it any more, and none can be (HOST_FENCED). One that
        does not keeps it from writing to these, a volume that does not exist any more passed over. On return it is proven: nothing
        that it writes is carried out any more. Idempotent. Raises Unreachable: what is noted of it stays, and of the rest nothing is known.
        """

    @abstractmethod
    def unfence_host(self, host: str) -> None:
        """Let a host reach volumes again; success if it is not fenced. What was published to it before is not."""

    @abstractmethod
    def fenced_hosts(self) -> Sequence[str]:
        """Return the names of the hosts that are fenced now."""


_FACETS: tuple[type[Backend], ...] = (
    *(Resizes, Snapshots, Overlays, Reverts, Clones, Measures, DataPath, Extracts, Adopts, Relabels, PathsSeen),
    *(Holders, Groups, ChangedBlocks, Fences, Publishes, FencesHosts),
)

FACET_NAMES: tuple[str, ...] = tuple(facet.__name__ for facet in _FACETS)
"""Every facet beside `Backend` itself, in a fixed order."""


def capabilities(backend: Backend | type[Backend]) -> tuple[str, ...]:
    """Return the names of the facets that a backend has, in a fixed order."""
    kind = backend if isinstance(backend, type) else type(backend)
    return tuple(facet.__name__ for facet in _FACETS if issubclass(kind, facet))
