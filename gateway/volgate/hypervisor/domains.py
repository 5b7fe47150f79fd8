"""Domains and their disks: find, attach, observe, detach. Each change looks first, acts, and then proves what it did.

`attach`, `begin_detach` and `clear` run beside no other change of the same domain (:mod:`volgate.hypervisor.calls`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import libvirt

from volgate.connection import DiskSource
from volgate.errors import InDoubt, InUse, NotFound, Precondition, Unreachable
from volgate.hypervisor import qmp, repair
from volgate.hypervisor.devices import Device, Layout, Place, free_place, layout, parse_disk
from volgate.hypervisor.disk_xml import render, without_slot
from volgate.hypervisor.faults import translated
from volgate.hypervisor.repair import Orphans
from volgate.model import DiskOptions

__all__ = ["Request", "Seen", "attach", "begin_detach", "clear", "lookup", "observe", "orphans", "plan", "require_live"]

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
_CONTROLLER = "<controller type='scsi' index='{}' model='virtio-scsi'/>"
_LOOKS, _BETWEEN_LOOKS = 20, 0.1  # libvirt takes up to 2 seconds to record that a QEMU died
_NAMES_TRIED = 8  # libvirt takes the next number after a clash of node names


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a disk is: in the live XML, in the persistent one, in QEMU itself (its device, or a node of its file that nothing explains)."""

    active: bool
    live: Device | None
    config: Device | None
    qemu: bool

    @property
    def gone(self) -> bool:
        """Nowhere any more."""
        return self.live is None and self.config is None and not self.qemu


@dataclass(frozen=True, slots=True)
class Request:
    """A disk to attach. `beside` are disks promised to this domain that it does not have yet; `amend` may change the XML."""

    source: DiskSource
    options: DiskOptions
    alias: str
    amend: Callable[[str], str] = lambda xml: xml
    beside: Sequence[str] = ()

    @property
    def files(self) -> list[str]:
        """The file and its layers."""
        return [self.source.path, *(path for path, _ in self.source.chain)]


def lookup(connection: libvirt.virConnect, reference: str) -> libvirt.virDomain:
    """Find a domain by uuid or name. Raises NotFound (DOMAIN_NOT_FOUND)."""
    with translated(f"find domain {reference!r}"):
        try:
            return connection.lookupByUUIDString(reference)
        except libvirt.libvirtError:
            return connection.lookupByName(reference)


def observe(domain: libvirt.virDomain, alias: str, source: str) -> Seen:
    """Look where a disk is, by its alias, deciding nothing. A domain that starts, stops or dies meanwhile is looked at again."""
    for _ in range(_LOOKS):
        try:
            return _observe(domain, alias, source)
        except (Precondition, Unreachable) as error:
            if error.reason not in ("DOMAIN_STATE", "QEMU_LOST"):
                raise
        time.sleep(_BETWEEN_LOOKS)
    return _observe(domain, alias, source)


def _observe(domain: libvirt.virDomain, alias: str, source: str) -> Seen:
    now, then = _layouts(domain)
    live = now.by_alias(alias) if now.running else None
    config = then.by_alias(alias) if then else None
    qemu = False
    if now.running:
        qemu = any(drive.device == alias for drive in qmp.drives(domain))
        if live is None and not qemu and source:
            qemu = bool(repair.look(domain, [source]).nodes)
    return Seen(now.running, live, config, qemu)


def _layouts(domain: libvirt.virDomain) -> tuple[Layout, Layout | None]:
    """The live layout (the persistent one of a domain that is off), and the persistent one if there is one."""
    with translated(f"read {domain.name()}"):
        now = layout(domain.XMLDesc())
        return now, layout(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain.isPersistent() else None


def attach(domain: libvirt.virDomain, wanted: Request, *, deadline: float) -> tuple[Device, Seen]:
    """Attach live where the domain runs and in its configuration where it is persistent; return the disk as libvirt has it.

    Done already under this alias: success. Raises InUse (the file is in this domain under another alias), OutOfSpace
    (NO_FREE_SLOT), Precondition, Unreachable (nothing done), InDoubt (libvirt died on the way).
    """
    try:
        return _attach_now(domain, wanted, deadline)
    except Precondition as error:
        if error.reason != "DOMAIN_STATE":
            raise
        return _attach_now(domain, wanted, deadline)  # it started or stopped meanwhile


def _attach_now(domain: libvirt.virDomain, wanted: Request, deadline: float) -> tuple[Device, Seen]:
    path = wanted.source.path
    seen = observe(domain, wanted.alias, path)
    if seen.active and seen.live is None:
        _clear_orphans(domain, wanted.files, deadline)
    device = seen.live or seen.config
    if device is not None and device.source != path:
        raise InUse(f"alias {wanted.alias} of {domain.name()} holds {device.source}, not {path}", reason="IDENTITY_MISMATCH")
    with translated(f"look at {domain.name()}"):
        flags = (_LIVE if seen.active and seen.live is None else 0) | (_CONFIG if domain.isPersistent() and seen.config is None else 0)
    if flags:
        xml = without_slot(device.xml) if device is not None else _prepared(domain, wanted)
        if time.monotonic() > deadline:
            raise Unreachable(f"attach {path} to {domain.name()}: the time was up before anything was done", reason="DOMAIN_BUSY")
        _attach(domain, xml, flags)
    return _proven(domain, wanted.alias, path)


def _clear_orphans(domain: libvirt.virDomain, files: list[str], deadline: float) -> None:
    """Remove what an attach that libvirtd's death interrupted left in QEMU: the disk would be there twice."""
    found, gone = repair.repair(domain, files, deadline=deadline)
    if found.devices and not gone:
        raise Unreachable(
            f"{domain.name()} holds {', '.join(found.devices)} of an interrupted attach until the guest releases it; repeat the call",
            reason="DOMAIN_BUSY",
        )


def plan(domain: libvirt.virDomain, wanted: Request) -> str:
    """Render the disk for a free place, attaching nothing. Raises InUse, InvalidRequest, Precondition, OutOfSpace."""
    xml, place = _planned(domain, wanted)
    if place.controller is not None and any(place.controller not in one.scsi for one in _layouts(domain) if one):
        raise Precondition(
            f"{domain.name()} has no virtio-scsi controller {place.controller}; add it, or use virtio-blk",
            reason="NO_CONTROLLER",
        )
    return xml


def _planned(domain: libvirt.virDomain, wanted: Request) -> tuple[str, Place]:
    now, then = _layouts(domain)
    layouts = [one for one in (now, then) if one is not None]
    for one in layouts:
        if holder := one.by_source(wanted.source.path):
            raise InUse(f"{domain.name()} has {wanted.source.path} already as {holder.target} ({holder.alias or 'no alias'})")
    if (thread := wanted.options.iothread) and not all(thread in one.iothreads for one in layouts):
        raise Precondition(
            f"options.iothread: {domain.name()} has no iothread {thread}; it has {sorted(now.iothreads) or 'none'}",
            field="options.iothread",
        )
    place = free_place(layouts, [parse_disk(xml) for xml in wanted.beside], wanted.options.bus)
    xml = render(wanted.source, wanted.options, alias=wanted.alias, target=place.target, address=place.address)
    return wanted.amend(xml), place


def _prepared(domain: libvirt.virDomain, wanted: Request) -> str:
    """Render the disk, and give the domain the controller that it is planned on wherever it lacks it."""
    xml, place = _planned(domain, wanted)
    now, then = _layouts(domain)
    if place.controller is not None:
        flags = _LIVE if now.running and place.controller not in now.scsi else 0
        flags |= _CONFIG if then and place.controller not in then.scsi else 0
        if flags:
            with translated(f"add a virtio-scsi controller to {domain.name()}", mutation=True):
                domain.attachDeviceFlags(_CONTROLLER.format(place.controller), flags)
    return xml


def _attach(domain: libvirt.virDomain, xml: str, flags: int) -> None:
    """Attach; nodes that others left in QEMU may have the names that libvirt gives next, it goes on past them."""
    for attempt in range(_NAMES_TRIED):
        try:
            with translated(f"attach a disk to {domain.name()}", mutation=True):
                domain.attachDeviceFlags(xml, flags)
        except Precondition as error:
            if "Duplicate nodes with node-name" not in error.message or attempt == _NAMES_TRIED - 1:
                raise
        else:
            return


def _proven(domain: libvirt.virDomain, alias: str, source: str) -> tuple[Device, Seen]:
    """Read back what libvirt and QEMU have now."""
    seen = observe(domain, alias, source)
    device = seen.live or seen.config
    if device is None or device.source != source or (seen.active and not (seen.live and seen.qemu)):
        raise InDoubt(f"{domain.name()}: the disk {alias} is not where it should be after the attach; repeat the call")
    return device, seen


def begin_detach(domain: libvirt.virDomain, alias: str, source: str) -> Seen:
    """Take a disk out of the configuration and ask the guest to release it; return where it was seen before.

    Raises InUse (IDENTITY_MISMATCH) before anything is done if the alias holds another source.
    """
    seen = observe(domain, alias, source)
    for device in (seen.live, seen.config):
        if device is not None and source and device.source != source:
            raise InUse(
                f"{domain.name()}: alias {alias} holds {device.source}, not {source}; nothing was detached", reason="IDENTITY_MISMATCH"
            )
    if seen.config is not None:
        _remove(domain, alias, _CONFIG)
    if seen.live is not None:
        _remove(domain, alias, _LIVE)
    return seen


def _remove(domain: libvirt.virDomain, alias: str, flag: int) -> None:
    """Ask; a request that stands already, or a disk that just went, is fine."""
    try:
        with translated(f"detach {alias} from {domain.name()}", mutation=True):
            domain.detachDeviceAlias(alias, flag)
    except NotFound as error:
        if error.reason != "DISK_NOT_FOUND":
            raise
    except Precondition as error:
        expected = ("in the process of unplug", "guest is busy", "no device found", "not running")
        if not any(mark in error.message for mark in expected):
            raise


def clear(domain: libvirt.virDomain, alias: str, source: str, *, deadline: float) -> None:
    """Remove what QEMU still has of a disk that libvirt does not list, if anything."""
    if _observe(domain, alias, source).live is None:
        orphans(domain, [source] if source else [], deadline)


def orphans(domain: libvirt.virDomain, sources: Sequence[str], deadline: float | None) -> tuple[Orphans, bool]:
    """Find what QEMU has of ours and libvirt does not list, and remove it until `deadline` (None: only look); whether it is gone."""
    if not _layouts(domain)[0].running:
        return Orphans(), True
    if deadline is None:
        found = repair.orphans(domain, sources)
        return found, not found.names
    return repair.repair(domain, sources, deadline=deadline)


def require_live(domain: libvirt.virDomain, alias: str) -> Device:
    """The disk of a running domain. Raises Precondition."""
    device = observe(domain, alias, "").live
    if device is None:
        raise Precondition(f"{domain.name()} does not run with disk {alias} now; look at the attachment's state")
    return device
