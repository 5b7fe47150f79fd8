"""What a volume, a snapshot, a pool and a host are: frozen values, sizes in bytes, times as UTC seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "Access",
    "Bus",
    "CacheMode",
    "Capacity",
    "DiskOptions",
    "ErrorPolicy",
    "Feature",
    "Format",
    "Health",
    "IoMode",
    "Labels",
    "Leftover",
    "Path",
    "PathState",
    "Provisioning",
    "Qos",
    "Redundancy",
    "Snapshot",
    "Source",
    "SourceKind",
    "Transport",
    "Volume",
    "VolumeSpec",
    "VolumeState",
]

Labels = dict[str, str]


class Format(StrEnum):
    """How the bytes of a volume lie on its storage."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"


class Provisioning(StrEnum):
    """Whether space is taken when the volume is made (thick) or when it is written (thin)."""

    THIN = "thin"
    THICK = "thick"


class SourceKind(StrEnum):
    """What a new volume is filled from."""

    EMPTY = "empty"
    VOLUME = "volume"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a new volume: another volume or a snapshot of the same pool, by name and uid."""

    kind: SourceKind
    volume: str
    volume_uid: str
    snapshot: str = ""
    snapshot_uid: str = ""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """What a caller asked for, and the identity that the journal's first commit drew for it.

    `size` is what was asked; the backend rounds up to its grain and reports the real size in `Volume.size`.
    `incomplete` marks a volume that an import is still filling: it is listed as creating and never attached.
    """

    name: str
    uid: str
    size: int
    format: Format
    provisioning: Provisioning = Provisioning.THIN
    source: Source | None = None
    labels: Labels = field(default_factory=dict)
    incomplete: bool = False


class VolumeState(StrEnum):
    """Where a volume is in its life."""

    READY = "ready"
    CREATING = "creating"
    DELETING = "deleting"
    FAILED = "failed"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as the storage knows it now.

    `requested_size` and `source` are what its creation asked for: a repeat of the creation is compared with them.
    `object` is its name on the storage. `allocated` is the space it takes itself, without what it shares with parents.
    `depth` counts the layers below the writable one (0: none).
    """

    name: str
    uid: str
    object: str
    size: int
    requested_size: int
    format: Format
    provisioning: Provisioning
    state: VolumeState = VolumeState.READY
    allocated: int = 0
    source: Source | None = None
    labels: Labels = field(default_factory=dict)
    generation: int = 1
    created_at: float = 0.0
    depth: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A point in time of a volume; `size` is the volume's size at that time."""

    name: str
    uid: str
    volume: str
    volume_uid: str
    size: int
    labels: Labels = field(default_factory=dict)
    created_at: float = 0.0
    quiesced: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """Space of a pool. `provisioned` is the sum of the sizes promised; `limit` the most that may be promised (0: none)."""

    total: int
    free: int
    provisioned: int
    limit: int = 0


class Health(StrEnum):
    """What a check of a pool found."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


class Access(StrEnum):
    """How many may write."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    SHARED = "shared"


class Bus(StrEnum):
    """The controller that the guest sees."""

    VIRTIO_BLK = "virtio-blk"
    VIRTIO_SCSI = "virtio-scsi"


class CacheMode(StrEnum):
    """QEMU's cache mode."""

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"


class IoMode(StrEnum):
    """QEMU's asynchronous I/O engine; native needs cache none or directsync."""

    NATIVE = "native"
    THREADS = "threads"
    IO_URING = "io_uring"


class Transport(StrEnum):
    """Who reaches the storage of an attached volume: the host, or, where QEMU has a driver of its own for it, QEMU."""

    HOST = "host"
    QEMU = "qemu"


class Feature(StrEnum):
    """What the hypervisor of a host can do of what Volgate uses. Callers compare these words: none ever gets another meaning."""

    VIRTIO_BLK = "virtio-blk"
    VIRTIO_SCSI = "virtio-scsi"
    IOTHREADS = "iothreads"
    IO_URING = "io_uring"
    BLOCKDEV = "blockdev"
    EXTERNAL_SNAPSHOTS = "external-snapshots"
    INCREMENTAL_BACKUP = "incremental-backup"
    RBD = "rbd"
    RBD_NAMESPACES = "rbd-namespaces"
    LIBISCSI = "libiscsi"
    LUKS = "luks"


class ErrorPolicy(StrEnum):
    """What becomes of the guest at an I/O error; RESUME stops it, and lets it run again when the way to its disk is healthy."""

    STOP = "stop"
    RESUME = "resume"
    REPORT = "report"
    ENOSPACE = "enospace"


@dataclass(frozen=True, slots=True)
class Qos:
    """Limits of an attached disk (libvirt's iotune); 0 means none. Bytes or operations per second."""

    total_bytes_sec: int = 0
    read_bytes_sec: int = 0
    write_bytes_sec: int = 0
    total_iops_sec: int = 0
    read_iops_sec: int = 0
    write_iops_sec: int = 0


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """How a guest sees a disk. `serial` of at most 20 characters reaches the guest whole on every bus.

    `passphrase` references the secret by which QEMU opens the volume's LUKS, "" for a volume that is no LUKS, or whose guest opens it.
    """

    bus: Bus = Bus.VIRTIO_BLK
    serial: str = ""
    access: Access = Access.READ_WRITE
    qos: Qos = field(default_factory=Qos)
    cache: CacheMode = CacheMode.NONE
    io: IoMode = IoMode.NATIVE
    discard: bool = True
    iothread: int = 0
    error_policy: ErrorPolicy = ErrorPolicy.STOP
    transport: Transport = Transport.HOST
    passphrase: str = ""


class PathState(StrEnum):
    """The state of one way that I/O can travel."""

    ACTIVE_OPTIMIZED = "active-optimized"
    ACTIVE = "active"
    STANDBY = "standby"
    FAILED = "failed"
    CONNECTING = "connecting"


class Redundancy(StrEnum):
    """Whether the loss of one path would be survived."""

    REDUNDANT = "redundant"
    SINGLE = "single"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a host has of ours and nothing accounts for.

    `kind` is `lun`, `map`, `disk`, `session`, `record` or `startup`; `problem` says what is wrong with it, or why it stays.
    """

    kind: str
    name: str
    problem: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """One way that I/O can travel, or one station on it.

    `transport` is `file`, `libvirt`, later `iscsi`, `fc`, ... `initiator` and `target` are its ends, `device` the node,
    `priority_group` orders groups of paths (0 first), `errors` counts what the guest or the kernel saw.
    """

    transport: str
    initiator: str
    target: str
    device: str
    state: PathState
    priority_group: int = 0
    last_error: str = ""
    errors: int = 0
    facts: dict[str, str] = field(default_factory=dict)
