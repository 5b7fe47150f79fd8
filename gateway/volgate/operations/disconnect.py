"""What a host connected for a volume is let go of with the last of the volume's attachments there."""

from __future__ import annotations

from collections.abc import Collection

import structlog

from volgate.connection import is_connected
from volgate.errors import InDoubt, InUse, Precondition, Unreachable
from volgate.hosts.interface import Host
from volgate.operations.world import World
from volgate.store import attachments

__all__ = ["disconnect", "disconnect_leftovers", "is_disconnected"]

_log = structlog.get_logger()


def disconnect(world: World, host: str, source: str, attachment: str) -> None:
    """Let a host let go of a volume, unless another attachment there uses it. Raises InUse, Unreachable, Precondition (HOST_PROTOCOL).

    The volume is locked by the caller, and the disk of `attachment` is gone.
    """
    if not is_connected(source):
        return
    with world.database.read() as connection:
        others = [one for one in attachments.page(connection, host=host, limit=100_000) if one.source == source and one.id != attachment]
    if not others:
        world.host(host)[1].release(source, timeout=world.settings.limits.libvirt_timeout)


def is_disconnected(world: World, host: str, source: str, attachment: str) -> bool:
    """The same; False while somebody has it open there, or the host, or the target, does not answer: it is tried again."""
    try:
        disconnect(world, host, source, attachment)
    except (InDoubt, InUse, Unreachable) as error:
        _log.warning("a host has not let go of a volume yet", host=host, source=source, attachment=attachment, error=error.message)
        return False
    return True


def disconnect_leftovers(host: Host, name: str, kept: Collection[str], *, timeout: float) -> None:
    """Let a host let go of what it connected and neither an attachment, nor an operation, nor a domain has. Raises VolgateError."""
    try:
        held = host.held(timeout=timeout)
    except Precondition as error:  # an older one connects nothing
        _log.info("a host does not tell what it has connected", host=name, error=error.message)
        return
    if left := set(held) - set(kept):
        left -= {found.disk.source for found in host.our_disks(timeout=timeout)}  # after a lost database nothing else knows them
    for source in sorted(left):
        try:
            host.release(source, timeout=timeout)
        except InUse as error:  # somebody else's; the next start looks again
            _log.warning("a host keeps a volume that no attachment knows", host=name, source=source, error=error.message)
        else:
            _log.warning("a host let go of a volume that no attachment knows", host=name, source=source)
