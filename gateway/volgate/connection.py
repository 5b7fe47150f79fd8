"""How a volume is reached: a closed union of frozen values.

A backend returns one; a connector on the host is keyed by its type. A new member is a change of the core on purpose:
it must be rendered, connected and documented, and mypy points at every `match` that forgot it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from volgate.errors import Unsupported
from volgate.model import Format

__all__ = [
    "BlockSource",
    "Chap",
    "Connection",
    "DiskSource",
    "FileIdentity",
    "FileSource",
    "IscsiLun",
    "IscsiPortal",
    "LibiscsiLun",
    "LibiscsiSource",
    "LocalBlock",
    "LocalFile",
    "RbdImage",
    "RbdSource",
    "as_file",
    "is_connected",
    "libiscsi_source",
    "rbd_source",
]


def rbd_source(fsid: str, path: str) -> str:
    """What an image is named by on a host: two clusters may have the same pools and images."""
    return f"rbd:{fsid}/{path}"


def libiscsi_source(target: str, lun: int) -> str:
    """What a LUN that QEMU opens itself is named by on a host: an IQN is nobody else's."""
    return f"iscsi:{target}/{lun}"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What proves that a file is the one: device and inode, read through an opened descriptor, and the owner tag's uid."""

    device: int
    inode: int
    uid: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this host's file system.

    `path` is absolute. `format` is never probed. `chain` names the files below it, nearest first (qcow2 layers); each is
    given to libvirt explicitly so that nothing follows what an image's header says. `tag` is the path of the owner tag
    that must carry `identity.uid`. `root` is the pool's directory: nothing outside it is ever opened.
    """

    path: str
    format: Format
    identity: FileIdentity
    root: str
    tag: str
    size: int
    chain: tuple[tuple[str, Format], ...] = field(default=())

    @property
    def source(self) -> str:
        """What libvirt names it by."""
        return self.path


@dataclass(frozen=True, slots=True)
class RbdImage:
    """An image of a Ceph cluster, reached through librbd.

    `fsid`, `pool_id`, `namespace` and `image_id` are its identity; `uid` is what its owner tag says. `monitors` are `host:port`
    (`[address]:port` of IPv6). `user` is the name without `client.`; `key` is a reference to its key, which the host resolves:
    the key itself is never part of a connection.
    """

    fsid: str
    pool_id: int
    pool: str
    namespace: str
    image: str
    image_id: str
    uid: str
    monitors: tuple[str, ...]
    user: str
    key: str
    size: int
    format: Format = Format.RAW

    @property
    def source(self) -> str:
        """What it is named by among the disks of a host."""
        return rbd_source(self.fsid, self.path)

    @property
    def path(self) -> str:
        """Pool, namespace if any, and image."""
        return "/".join(part for part in (self.pool, self.namespace, self.image) if part)


@dataclass(frozen=True, slots=True, order=True)
class IscsiPortal:
    """A way to an iSCSI target: an IP address (IPv6 without brackets), a port, and the target's IQN."""

    address: str
    port: int
    target: str

    @property
    def place(self) -> str:
        """Where it is, `address:port`, as open-iscsi writes it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def __str__(self) -> str:
        return f"{self.target} at {self.place}"


@dataclass(frozen=True, slots=True)
class Chap:
    """How initiator and target prove themselves: names, and references to secrets, which the host resolves.

    With a `target_user` the target proves itself too.
    """

    user: str
    secret: str
    target_user: str = ""
    target_secret: str = ""


@dataclass(frozen=True, slots=True)
class IscsiLun:
    """A LUN of an iSCSI target. `wwid` is its identity, as multipath writes it; `size` in bytes.

    With `multipath` all portals are used, through a map of dm-multipath; else one.
    """

    wwid: str
    portals: tuple[IscsiPortal, ...]
    lun: int
    size: int
    multipath: bool = True
    chap: Chap | None = None
    format: Format = Format.RAW

    @property
    def source(self) -> str:
        """What libvirt names it by: a link that udev makes of the identity."""
        return f"/dev/disk/by-id/{'dm-uuid-mpath-' if self.multipath else 'scsi-'}{self.wwid}"


_BY_ID = "/dev/disk/by-id"
_CONNECTED = (f"{_BY_ID}/dm-uuid-mpath-", f"{_BY_ID}/scsi-")


def is_connected(source: str) -> bool:
    """Whether a host has to connect what libvirt names so, and to let go of it after its last use."""
    return source.startswith(_CONNECTED)


@dataclass(frozen=True, slots=True)
class LibiscsiLun:
    """A LUN that QEMU opens itself, by one portal. `wwid` is its identity, as multipath writes it; `size` in bytes."""

    wwid: str
    portal: IscsiPortal
    lun: int
    size: int
    chap: Chap | None = None
    format: Format = Format.RAW

    @property
    def source(self) -> str:
        """What it is named by among the disks of a host."""
        return libiscsi_source(self.portal.target, self.lun)


@dataclass(frozen=True, slots=True)
class LocalBlock:
    """A block device of this host's device mapper.

    `path` names it for good; `dm_uuid` is its identity, which device mapper tells of whatever was opened. `size` in bytes.
    """

    path: str
    dm_uuid: str
    size: int
    format: Format = Format.RAW

    @property
    def source(self) -> str:
        """What libvirt names it by."""
        return self.path


Connection = LocalFile | RbdImage | LocalBlock | IscsiLun | LibiscsiLun
"""The union; later members join with `|`."""


def as_file(connection: Connection) -> LocalFile:
    """The file that a connection is. Raises Unsupported for one that is none: a bug of who asks, not of the caller."""
    if isinstance(connection, LocalFile):
        return connection
    raise Unsupported(f"{connection.source} is no file on this host")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A proven file as libvirt is given it: explicit format and explicit chain."""

    path: str
    format: Format
    chain: tuple[tuple[str, Format], ...] = field(default=())

    @property
    def source(self) -> str:
        """What it is named by among the disks of a host."""
        return self.path


@dataclass(frozen=True, slots=True)
class RbdSource:
    """An image of a Ceph cluster as libvirt is given it: `path` is pool, namespace if any, and image.

    The key is in a libvirt secret whose name holds the cluster and the user (:mod:`volgate.hypervisor.secrets`).
    """

    fsid: str
    path: str
    monitors: tuple[str, ...]
    user: str
    format: Format = Format.RAW
    chain: tuple[tuple[str, Format], ...] = field(default=())

    @property
    def source(self) -> str:
        """What it is named by among the disks of a host."""
        return rbd_source(self.fsid, self.path)


@dataclass(frozen=True, slots=True)
class BlockSource:
    """A proven block device as libvirt is given it."""

    path: str
    format: Format = Format.RAW
    chain: tuple[tuple[str, Format], ...] = field(default=())

    @property
    def source(self) -> str:
        """What it is named by among the disks of a host."""
        return self.path


@dataclass(frozen=True, slots=True)
class LibiscsiSource:
    """A LUN as libvirt is given it, for QEMU to open as `initiator` (the host's IQN); `user` of CHAP, "" for none."""

    portal: IscsiPortal
    lun: int
    initiator: str
    user: str = ""
    format: Format = Format.RAW
    chain: tuple[tuple[str, Format], ...] = field(default=())

    @property
    def source(self) -> str:
        """What it is named by among the disks of a host."""
        return libiscsi_source(self.portal.target, self.lun)


DiskSource = FileSource | RbdSource | BlockSource | LibiscsiSource
"""What a connector makes of a `Connection` on this host, ready for a `<disk>`; later members join with `|`."""
