"""Domains and their disks: find, attach, observe, detach. Each mutation looks first, acts, and then proves what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import libvirt

from volgate.connection import DiskSource
from volgate.errors import InDoubt, InUse, NotFound, Precondition, VolgateError
from volgate.hypervisor import devices, qmp
from volgate.hypervisor.devices import Device
from volgate.hypervisor.disk_xml import render
from volgate.hypervisor.link import translated
from volgate.hypervisor.repair import repair
from volgate.model import Bus, DiskOptions

__all__ = ["Seen", "attach", "detach", "lookup", "observe"]

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
_CONTROLLER = "<controller type='scsi' index='0' model='virtio-scsi'/>"
_TICK = 0.02


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a disk is: in the live XML, in the persistent one, in QEMU itself (its device or a node of its file)."""

    active: bool
    live: Device | None
    config: Device | None
    qemu: bool


def lookup(connection: libvirt.virConnect, reference: str) -> libvirt.virDomain:
    """Find a domain by uuid or name. Raises NotFound (DOMAIN_NOT_FOUND)."""
    with translated(f"find domain {reference!r}"):
        try:
            return connection.lookupByUUIDString(reference)
        except libvirt.libvirtError:
            return connection.lookupByName(reference)


def observe(domain: libvirt.virDomain, alias: str, source: str) -> Seen:
    """Look where a disk is, by its alias, deciding nothing."""
    with translated(f"look at {domain.name()}"):
        active = bool(domain.isActive())
        live = devices.by_alias(devices.disks(domain.XMLDesc()), alias) if active else None
        config = _configured(domain, alias) if domain.isPersistent() else None
    qemu = False
    if active:
        found = qmp.drives(domain)
        held = any(drive.device == alias for drive in found)
        qemu = held or (bool(source) and live is None and any(node.file == source for node in qmp.nodes(domain)))
    return Seen(active, live, config, qemu)


def _configured(domain: libvirt.virDomain, alias: str) -> Device | None:
    found = devices.disks(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return devices.by_alias(found, alias)


def attach(
    domain: libvirt.virDomain,
    source: DiskSource,
    options: DiskOptions,
    *,
    alias: str,
    amend: Callable[[str], str],
    timeout: float,
) -> Device:
    """Attach live where the domain runs and in its configuration where it is persistent; return the disk as libvirt has it.

    Done already under this alias: success. Raises InUse (the file is in this domain under another alias), OutOfSpace
    (NO_FREE_SLOT), Precondition, InDoubt (libvirt died on the way).
    """
    deadline = time.monotonic() + timeout
    seen = observe(domain, alias, source.path)
    if seen.active and seen.live is None:
        _clear_orphans(domain, source.path, deadline)
    device = seen.live or seen.config
    if device is not None and device.source != source.path:
        raise InUse(f"alias {alias} of {domain.name()} holds {device.source}, not {source.path}", reason="IDENTITY_MISMATCH")
    xml = device.xml if device is not None else _planned(domain, source, options, alias, amend)
    flags = (_LIVE if seen.active and seen.live is None else 0) | (_CONFIG if domain.isPersistent() and seen.config is None else 0)
    if flags:
        with translated(f"attach {source.path} to {domain.name()}", mutation=True):
            domain.attachDeviceFlags(xml, flags)
    return _proven(domain, alias, source.path)


def _clear_orphans(domain: libvirt.virDomain, source: str, deadline: float) -> None:
    """Remove what an attach that libvirtd's death interrupted left in QEMU: a retry would fail on its node names."""
    found, clean = repair(domain, [source], apply=True, deadline=deadline)
    if found and not clean:
        raise InDoubt(f"{domain.name()} still holds {', '.join(found)} of an interrupted attach; the guest has not released it")


def _planned(domain: libvirt.virDomain, source: DiskSource, options: DiskOptions, alias: str, amend: Callable[[str], str]) -> str:
    with translated(f"read {domain.name()}"):
        texts = [domain.XMLDesc()] + ([domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)] if domain.isPersistent() else [])
    found = [device for text in texts for device in devices.disks(text)]
    if holder := devices.by_source(found, source.path):
        raise InUse(f"{domain.name()} has {source.path} already as {holder.target} ({holder.alias or 'no alias'})")
    address = None
    if options.bus is Bus.VIRTIO_SCSI:
        if devices.needs_controller(texts[0]):
            _add_controller(domain)
        address = devices.free_scsi(found)
    elif domain.isActive():
        devices.require_port(texts[0])
    target = devices.free_target({device.target for device in found}, options.bus)
    return amend(render(source, options, alias=alias, target=target, address=address))


def _add_controller(domain: libvirt.virDomain) -> None:
    flags = (_LIVE if domain.isActive() else 0) | (_CONFIG if domain.isPersistent() else 0)
    with translated(f"add a virtio-scsi controller to {domain.name()}", mutation=True):
        domain.attachDeviceFlags(_CONTROLLER, flags)


def _proven(domain: libvirt.virDomain, alias: str, source: str) -> Device:
    """Read back what libvirt and QEMU have now."""
    seen = observe(domain, alias, source)
    device = seen.live or seen.config
    if device is None or device.source != source or (seen.active and not (seen.live and seen.qemu)):
        raise InDoubt(f"{domain.name()}: the disk {alias} is not where it should be after the attach; it is tried again")
    return device


def detach(domain: libvirt.virDomain, alias: str, source: str, *, timeout: float, wait: Callable[[float], None]) -> bool:
    """Detach by alias, the configuration first; True only when the XML, the configuration and QEMU have it no more.

    `wait` sleeps until an event of the domain or for so many seconds. False: the guest has not released it within `timeout`.
    Raises InUse (IDENTITY_MISMATCH) before anything is done if the alias holds another source.
    """
    deadline = time.monotonic() + timeout
    seen = observe(domain, alias, source)
    for device in (seen.live, seen.config):
        if device is not None and source and device.source != source:
            raise InUse(
                f"{domain.name()}: alias {alias} holds {device.source}, not {source}; nothing was detached", reason="IDENTITY_MISMATCH"
            )
    if seen.config is not None:
        with translated(f"remove {alias} from the configuration of {domain.name()}", mutation=True):
            domain.detachDeviceFlags(seen.config.xml, _CONFIG)
    if seen.live is not None:
        _ask(domain, alias)
    while True:
        seen = observe(domain, alias, source)
        if seen.live is None and seen.qemu:
            repair(domain, [source], apply=True, deadline=deadline)
        if seen.live is None and not seen.qemu:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        wait(min(left, 0.25))


def _ask(domain: libvirt.virDomain, alias: str) -> None:
    """Ask the guest to release the disk; a request that stands already, or a disk that just went, is fine."""
    try:
        with translated(f"detach {alias} from {domain.name()}", mutation=True):
            domain.detachDeviceAlias(alias, _LIVE)
    except (InDoubt, NotFound):
        raise
    except VolgateError as error:
        if not any(mark in error.message for mark in ("in the process of unplug", "no device found", "not running")):
            raise Precondition(error.message, reason=error.reason) from error
