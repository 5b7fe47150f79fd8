"""One volume may be reached in more than one way: which one an attachment uses."""

from __future__ import annotations

from volgate.connection import Connection, IscsiLun, LibiscsiLun, RbdImage
from volgate.errors import InvalidRequest
from volgate.model import Transport

__all__ = ["by", "sources"]


def by(found: Connection, transport: Transport) -> Connection:
    """How it is reached by this transport. Raises InvalidRequest (options.transport) for a volume that QEMU cannot open itself."""
    if transport is Transport.HOST or isinstance(found, RbdImage):
        return found
    if isinstance(found, IscsiLun):
        return LibiscsiLun(found.wwid, found.portals[0], found.lun, found.size, found.chap, found.format)
    raise InvalidRequest(
        f"options.transport: QEMU has no driver for {found.source}; leave it out, the host reaches it", field="options.transport"
    )


def sources(found: Connection) -> set[str]:
    """What it may be named by among the disks of a host."""
    return {found.source} | ({by(found, Transport.QEMU).source} if isinstance(found, IscsiLun) else set())
