"""Orphans: what QEMU has and libvirt's XML does not, after libvirtd died in the middle of an attach.

Only devices whose id begins with `ua-vg-` (ours), nodes that libvirt named, that no device holds and that open one of the files
asked about, and the keys of layers that are nowhere, are ever touched.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import libvirt

from volgate.errors import Precondition
from volgate.hypervisor import qmp
from volgate.hypervisor.devices import in_qemu, layout
from volgate.hypervisor.faults import translated

__all__ = ["PREFIX", "Orphans", "look", "orphans", "repair"]

PREFIX = "ua-vg-"
_SECRETIVE = ("rbd:", "librbd:", "/dev/")  # a device may hold LUKS
_BETWEEN = 0.05  # seconds from the first look to the one that confirms it
_ASK_AGAIN = 6.0  # QEMU refuses to repeat an unplug request for 5 seconds
_SETTLE = 0.1  # libvirt handles a device's end late: a new device of the same alias would be struck from its XML


@dataclass(frozen=True, slots=True)
class Orphans:
    """Device ids and node names, upper layers first. `tops` are the devices' own nodes, `files` what all nodes open, `keys` objects.

    `spotless`: every node that libvirt named is in its XML, so that no other file has an orphan either.
    """

    devices: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    spotless: bool = False
    keys: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.devices, *self.nodes, *self.keys]

    def __and__(self, other: Orphans) -> Orphans:
        """What both have; a device on another node is another one, that was attached since."""
        again = set(zip(other.devices, other.tops, strict=True))
        both = [pair for pair in zip(self.devices, self.tops, strict=True) if pair in again]
        nodes = tuple(name for name in self.nodes if name in other.nodes)
        spotless = self.spotless and other.spotless
        keys = tuple(name for name in self.keys if name in other.keys)
        return Orphans(tuple(device for device, _ in both), tuple(top for _, top in both), nodes, self.files, spotless, keys)


def look(domain: libvirt.virDomain, sources: Collection[str]) -> Orphans:
    """Compare once. QEMU is read first: what it had before the XML was read and is not in the XML is no attach that just ended."""
    drives, nodes = qmp.drives(domain), qmp.nodes(domain)
    keys = qmp.secrets(domain) if any(source.startswith(_SECRETIVE) for source in sources) else []
    with translated("read the domain's XML"):
        known = layout(domain.XMLDesc())
    aliases = {device.alias for device in known.disks}
    indexes = {index for device in known.disks for index in device.indexes}
    stray = [drive for drive in drives if drive.device.startswith(PREFIX) and drive.device not in aliases]
    held = {drive.node for drive in drives if drive not in stray}
    files = {*map(in_qemu, sources), *(file for drive in stray for file in drive.files)} - {""}
    unlisted = [node for node in nodes if node.index and node.index not in indexes]
    kept = {node.index for node in unlisted if node.name in held}
    free = [node for node in unlisted if node.index not in kept]
    files |= {file for node in free if files.intersection(node.files[:1]) for file in node.files}
    ours = [node for node in free if files.intersection(node.files[:1])]
    others = indexes | {node.index for node in nodes if node not in ours}
    return Orphans(
        keys=tuple(name for index, name in keys if index not in others),
        devices=tuple(drive.device for drive in stray),
        tops=tuple(drive.node for drive in stray),
        nodes=tuple(node.name for node in ours),
        files=tuple(sorted(files)),
        spotless=not (stray or unlisted or any(index not in others for index, _ in keys)),
    )


def orphans(domain: libvirt.virDomain, sources: Collection[str]) -> Orphans:
    """What two looks agree on: QEMU had it before and after an XML that lacks it, so it is not about to come or to go.

    Libvirt lists a disk from the end of its attach until QEMU has let go of it, and counts its node names upwards.
    """
    first = look(domain, sources)
    if not first.names:
        return first
    time.sleep(_BETWEEN)
    return first & look(domain, sources)


def repair(domain: libvirt.virDomain, sources: Sequence[str], *, deadline: float) -> tuple[Orphans, bool]:
    """Remove orphans until `deadline` (monotonic seconds); return what was found and whether it is gone.

    The caller keeps attaches and detaches of this domain away meanwhile.
    """
    found = orphans(domain, sources)
    if not found.names:
        return found, True
    if found.devices and not _unplug(domain, found.devices, deadline):
        return found, False
    _close(domain, list(orphans(domain, found.files).nodes))
    for key in orphans(domain, [*sources, *found.files]).keys:
        _quietly(domain, "object-del", ("not found",), id=key)
    return found, not look(domain, [*sources, *found.files]).names


def _unplug(domain: libvirt.virDomain, devices: Sequence[str], deadline: float) -> bool:
    """Ask the guest to release devices until QEMU has none of them; False if it does not in time."""
    asked = float("-inf")
    while left := {drive.device for drive in qmp.drives(domain)}.intersection(devices):
        now = time.monotonic()
        if now - asked > _ASK_AGAIN:
            asked = now
            for device in sorted(left):
                _quietly(domain, "device_del", ("in the process of unplug", "is busy", "not found"), id=device)
        elif now > deadline:
            return False
        time.sleep(0.02)
    time.sleep(_SETTLE)
    return True


def _close(domain: libvirt.virDomain, names: list[str]) -> None:
    """Close nodes; one that another stands on is refused until that one is closed."""
    for _ in range(len(names)):
        names = [name for name in names if not _quietly(domain, "blockdev-del", ("is in use", "is busy"), **{"node-name": name})]


def _quietly(domain: libvirt.virDomain, command: str, expected: tuple[str, ...], **arguments: str) -> bool:
    """Run a command; False if it is refused for an expected reason. What is gone already is fine."""
    try:
        qmp.command(domain, command, **arguments)
    except Precondition as error:
        if "Failed to find node" in error.message:
            return True
        if not any(mark in error.message for mark in expected):
            raise
        return False
    return True
