"""Orphans: what QEMU has and libvirt's XML does not, after libvirtd died in the middle of an attach.

Only devices whose id begins with `ua-vg-` (ours), and deviceless nodes that open one of our own files, are ever touched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import libvirt

from volgate.errors import Precondition
from volgate.hypervisor import devices, qmp
from volgate.hypervisor.link import translated

__all__ = ["PREFIX", "orphan_devices", "orphan_nodes", "repair"]

PREFIX = "ua-vg-"


def orphan_devices(domain: libvirt.virDomain) -> list[str]:
    """Ids of devices of ours that libvirt does not list."""
    with translated("read the domain's XML"):
        known = {device.alias for device in devices.disks(domain.XMLDesc())}
    return [drive.device for drive in qmp.drives(domain) if drive.device.startswith(PREFIX) and drive.device not in known]


def orphan_nodes(domain: libvirt.virDomain, sources: Sequence[str]) -> list[str]:
    """Names of libvirt's nodes of these files that no disk in the XML uses and no device holds; formats before what they stand on."""
    with translated("read the domain's XML"):
        known = {index for device in devices.disks(domain.XMLDesc()) for index in device.indexes}
    held = {drive.node for drive in qmp.drives(domain)}
    found = []
    for node in qmp.nodes(domain):
        parts = node.name.split("-")
        ours = parts[0] == "libvirt" and len(parts) > 2 and parts[1] not in known  # noqa: PLR2004  # libvirt-N-storage, libvirt-N-format
        if ours and node.name not in held and any(source and source in node.file for source in sources):
            found.append(node.name)
    return sorted(found, key=lambda name: (name.endswith("storage"), name))


def repair(domain: libvirt.virDomain, sources: Sequence[str], *, apply: bool, deadline: float) -> tuple[list[str], bool]:
    """Find orphans and, with `apply`, remove them until `deadline` (monotonic seconds); return their names and whether they are gone."""
    found = orphan_devices(domain)
    if apply:
        for device in found:
            _unplug(domain, device)
        while orphan_devices(domain) and time.monotonic() < deadline:
            time.sleep(0.02)
    stray = orphan_nodes(domain, sources)
    if apply:
        for node in stray:
            _close(domain, node)
    clean = not apply or not (orphan_devices(domain) or orphan_nodes(domain, sources))
    return found + stray, clean and apply


def _unplug(domain: libvirt.virDomain, device: str) -> None:
    try:
        qmp.command(domain, "device_del", id=device)
    except Precondition as error:
        if "in the process of unplug" not in error.message and "not found" not in error.message:
            raise


def _close(domain: libvirt.virDomain, node: str) -> None:
    try:
        qmp.command(domain, "blockdev-del", **{"node-name": node})
    except Precondition as error:
        if "Failed to find" not in error.message:
            raise
