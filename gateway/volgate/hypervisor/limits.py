"""Limits of a disk that a domain has (libvirt's block I/O tune)."""

from __future__ import annotations

from dataclasses import asdict

import libvirt

from volgate.errors import Precondition
from volgate.hypervisor.domains import Seen
from volgate.hypervisor.faults import translated
from volgate.model import Qos

__all__ = ["limit"]


def limit(domain: libvirt.virDomain, seen: Seen, qos: Qos) -> None:
    """Set all six limits at once, for a total replaces its read and write parts. Raises Precondition if the domain lacks the disk."""
    places = ((seen.live, libvirt.VIR_DOMAIN_AFFECT_LIVE), (seen.config, libvirt.VIR_DOMAIN_AFFECT_CONFIG))
    if not any(device for device, _ in places):
        raise Precondition(f"{domain.name()} does not have the disk now; attach it again", reason="NOT_ATTACHED")
    for device, flag in places:
        if device is not None:
            with translated(f"limit {device.target} of {domain.name()}", mutation=True):
                domain.setBlockIoTune(device.target, asdict(qos), flag)
