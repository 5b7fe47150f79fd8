"""How a volume is reached: a closed union of frozen values.

A backend returns one; a connector on the host is keyed by its type. A new member is a change of the core on purpose:
it must be rendered, connected and documented, and mypy points at every `match` that forgot it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from volgate.model import Format

__all__ = ["Connection", "DiskSource", "FileIdentity", "FileSource", "LocalFile"]


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


Connection = LocalFile
"""The union; later members join with `|`."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A proven file as libvirt is given it: explicit format and explicit chain."""

    path: str
    format: Format
    chain: tuple[tuple[str, Format], ...] = field(default=())


DiskSource = FileSource
"""What a connector makes of a `Connection` on this host, ready for a `<disk>`; later members join with `|`."""
