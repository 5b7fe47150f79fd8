"""Plain facts about a connection and a domain."""

from __future__ import annotations

import libvirt

from volgate.hypervisor.faults import translated

__all__ = ["describe_domain", "describe_link"]


def describe_link(connection: libvirt.virConnect) -> tuple[str, str]:
    """Libvirt's version and QEMU's."""
    with translated("describe libvirt"):
        return _dotted(connection.getLibVersion()), _dotted(connection.getVersion())


def describe_domain(domain: libvirt.virDomain) -> tuple[str, str, bool, bool, str]:
    """uuid, name, whether it runs, whether it is persistent, and what changes with every start."""
    with translated("describe a domain"):
        boot = domain.ID()  # libvirt told it with the domain: no question of its own
        return domain.UUIDString(), domain.name(), boot >= 0, bool(domain.isPersistent()), str(boot) if boot >= 0 else ""


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
