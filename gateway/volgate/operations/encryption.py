"""Volumes that QEMU opens by a passphrase: who may ask for it, and of what."""

from __future__ import annotations

from volgate.connection import Connection, IscsiLun, LocalBlock
from volgate.errors import Denied, InvalidRequest, Unreachable, Unsupported
from volgate.model import Access, DiskOptions, Feature
from volgate.operations.world import World

__all__ = ["refuse_unlisted", "require"]

_FIELD = "options.passphrase"


def refuse_unlisted(world: World, options: DiskOptions) -> None:
    """Refuse a reference that the operator has not allowed: a caller could name any file of a host. Raises Denied."""
    allowed = world.settings.encryption.allowed_references
    if options.passphrase and not options.passphrase.startswith(allowed):
        told = f"{options.passphrase} begins with none of the allowed references ({', '.join(allowed) or 'none'})"
        raise Denied(f"{_FIELD}: {told}; see [encryption] in the configuration", field=_FIELD)


def require(world: World, host: str, connection: Connection, options: DiskOptions) -> None:
    """Refuse a passphrase that means nothing here. Raises InvalidRequest, Unreachable, Unsupported.

    A host that does not know of LUKS would show its guest the ciphertext: it is asked before.
    """
    if not options.passphrase:
        return
    if not isinstance(connection, LocalBlock | IscsiLun):
        told = f"{connection.source} is no block device of the host; LUKS is for volumes of LVM and for LUNs that the host reaches"
        raise InvalidRequest(f"{_FIELD}: {told}", field=_FIELD)
    if options.access is Access.SHARED:
        raise InvalidRequest(f"{_FIELD}: LUKS is opened by one QEMU at a time; leave shared out", field=_FIELD)
    info = world.hosts[host].info()
    if info.problem:
        raise Unreachable(f"{_FIELD}: hosts/{host} does not tell what it can: {info.problem}", retry_after=1.0)
    if Feature.LUKS not in info.features:
        told = f"hosts/{host} does not open LUKS; run this volgate there, and see volgate host show {host}"
        raise Unsupported(f"{_FIELD}: {told}", field=_FIELD)
