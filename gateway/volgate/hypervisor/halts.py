"""Domains that QEMU stopped because of an I/O error: which, by which disks, and how they run again."""

from __future__ import annotations

import libvirt

from volgate.errors import NotFound
from volgate.hypervisor import qmp
from volgate.hypervisor.faults import translated

__all__ = ["failed_disks", "halted", "resume"]


def halted(connection: libvirt.virConnect) -> list[tuple[str, str]]:
    """The uuid and the name of every domain that is stopped by an I/O error."""
    with translated("list the domains that are paused"):
        paused = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED)
    found = []
    for domain in paused:
        try:
            if _is_halted(domain):
                found.append((domain.UUIDString(), domain.name()))
        except NotFound:
            continue  # it ended meanwhile
    return found


def _is_halted(domain: libvirt.virDomain) -> bool:
    """Whether a domain is stopped by an I/O error, and by nobody since."""
    with translated(f"look at {domain.name()}"):
        state, reason = domain.state()
    return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)


def resume(domain: libvirt.virDomain) -> bool:
    """Let a domain that is stopped by an I/O error run: QEMU repeats what failed. False if it is not stopped by one."""
    if not _is_halted(domain):
        return False
    with translated(f"resume {domain.name()}"):
        domain.resume()
    return True


def failed_disks(domain: libvirt.virDomain) -> tuple[str, ...]:
    """Aliases of the disks that QEMU has stopped the guest for."""
    return tuple(drive.device for drive in qmp.drives(domain) if drive.failed)
