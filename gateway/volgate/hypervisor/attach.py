"""Attach a disk to a domain, or only render it. Runs beside no other change of the same domain (:mod:`volgate.hypervisor.calls`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import libvirt
import structlog

from volgate.connection import DiskSource
from volgate.errors import InDoubt, InUse, InvalidRequest, Precondition, Unreachable, Unsupported, VolgateError
from volgate.hypervisor import domains, repair
from volgate.hypervisor.devices import Device, Layout, Place, free_place, parse_disk
from volgate.hypervisor.disk_xml import render, without_slot
from volgate.hypervisor.domains import CONFIG, LIVE, Seen
from volgate.hypervisor.faults import translated
from volgate.model import DiskOptions

__all__ = ["Request", "attach", "plan"]

_CONTROLLER = "<controller type='scsi' index='{}' model='virtio-scsi'/>"
_log = structlog.get_logger()
_PLACES_TRIED = 16
_TAKEN = ("already exists", "already in use")
_NAMES_TRIED = 8  # libvirt takes the next number after a clash of node names


@dataclass(frozen=True, slots=True)
class Request:
    """A disk to attach. `beside` are disks promised to this domain that it does not have yet; `amend` may change the XML.

    `clean` are the running domains known to have no orphan: one comes about only when libvirtd dies, and whoever shares the
    set empties it then.
    """

    source: DiskSource
    options: DiskOptions
    alias: str
    amend: Callable[[str], str] = lambda xml: xml
    beside: Sequence[str] = ()
    clean: set[tuple[str, int]] = field(default_factory=set)

    @property
    def files(self) -> list[str]:
        """The file and its layers."""
        return [self.source.source, *(path for path, _ in self.source.chain)]


def attach(domain: libvirt.virDomain, wanted: Request, *, deadline: float) -> tuple[Device, Seen]:
    """Attach live where the domain runs and in its configuration where it is persistent; return the disk as libvirt has it.

    Done already under this alias: success. Raises InUse (the file is in this domain under another alias), OutOfSpace
    (NO_FREE_SLOT), Precondition, Unreachable (nothing done), InDoubt (libvirt died on the way).
    """
    for attempt in range(_PLACES_TRIED):
        try:
            return _attach(domain, wanted, deadline)
        except Precondition as error:
            meanwhile = error.reason == "DOMAIN_STATE" and not attempt  # it started or stopped
            taken = any(mark in error.message for mark in _TAKEN) and attempt < _PLACES_TRIED - 1  # by another controller, or by hand
            if not (meanwhile or taken):
                raise
    raise AssertionError("unreachable")


def _attach(domain: libvirt.virDomain, wanted: Request, deadline: float) -> tuple[Device, Seen]:
    path = wanted.source.source
    now, then = domains.layouts(domain)
    if now.running and now.by_alias(wanted.alias) is None and _clear_orphans(domain, wanted, deadline):
        now, then = domains.layouts(domain)
    live = now.by_alias(wanted.alias) if now.running else None
    config = then.by_alias(wanted.alias) if then else None
    device = live or config
    if device is not None and device.source != path:
        raise InUse(f"alias {wanted.alias} of {domain.name()} holds {device.source}, not {path}", reason="IDENTITY_MISMATCH")
    flags = (LIVE if now.running and live is None else 0) | (CONFIG if then and config is None else 0)
    if flags:
        xml, plain = (without_slot(device.xml), "") if device is not None else _prepare(domain, wanted, now, then)
        if time.monotonic() > deadline:
            raise Unreachable(f"attach {path} to {domain.name()}: the time was up before anything was done", reason="DOMAIN_BUSY")
        try:
            xml = _hand_over_amended(domain, xml, plain, flags)
        except VolgateError:
            wanted.clean.clear()  # whatever it left is looked for next time
            raise
        config = parse_disk(xml) if flags & CONFIG else config
    return _proven(domain, wanted, config)


def _clear_orphans(domain: libvirt.virDomain, wanted: Request, deadline: float) -> bool:
    """Remove what an attach that libvirtd's death interrupted left in QEMU: the disk would be there twice. True if there was any."""
    with translated(f"look at {domain.name()}"):
        running = (domain.UUIDString(), domain.ID())
    if running in wanted.clean:
        return False
    found, gone = repair.repair(domain, wanted.files, deadline=deadline)
    if found.devices and not gone:
        raise Unreachable(
            f"{domain.name()} holds {', '.join(found.devices)} of an interrupted attach until the guest releases it; repeat the call",
            reason="DOMAIN_BUSY",
        )
    if found.spotless:
        wanted.clean.add(running)
    return bool(found.names)


def plan(domain: libvirt.virDomain, wanted: Request) -> str:
    """Render the disk for a free place, attaching nothing. Raises InUse, InvalidRequest, Precondition, OutOfSpace."""
    now, then = domains.layouts(domain)
    plain, place = _planned(domain, wanted, now, then)
    if place.controller is not None and any(place.controller not in one.scsi for one in (now, then) if one):
        raise Precondition(
            f"{domain.name()} has no virtio-scsi controller {place.controller}; add it, or use virtio-blk", reason="NO_CONTROLLER"
        )
    return wanted.amend(plain)


def _planned(domain: libvirt.virDomain, wanted: Request, now: Layout, then: Layout | None) -> tuple[str, Place]:
    both = [one for one in (now, then) if one is not None]
    for one in both:
        if holder := one.by_source(wanted.source.source):
            raise InUse(f"{domain.name()} has {wanted.source.source} already as {holder.target} ({holder.alias or 'no alias'})")
    if (thread := wanted.options.iothread) and not all(thread in one.iothreads for one in both):
        raise Precondition(
            f"options.iothread: {domain.name()} has no iothread {thread}; it has {sorted(now.iothreads) or 'none'}",
            field="options.iothread",
        )
    place = free_place(both, [parse_disk(xml) for xml in wanted.beside], wanted.options.bus)
    xml = render(wanted.source, wanted.options, alias=wanted.alias, target=place.target, address=place.address)
    return xml, place


def _prepare(domain: libvirt.virDomain, wanted: Request, now: Layout, then: Layout | None) -> tuple[str, str]:
    """Render the disk, amended and plain, and give the domain the controller that it is planned on wherever it lacks it."""
    xml, place = _planned(domain, wanted, now, then)
    if place.controller is not None:
        flags = LIVE if now.running and place.controller not in now.scsi else 0
        flags |= CONFIG if then and place.controller not in then.scsi else 0
        if flags:
            with translated(f"add a virtio-scsi controller to {domain.name()}", mutation=True):
                domain.attachDeviceFlags(_CONTROLLER.format(place.controller), flags)
    return wanted.amend(xml), xml


def _hand_over_amended(domain: libvirt.virDomain, xml: str, plain: str, flags: int) -> str:
    """Attach the disk as plugins amended it, or plain where libvirt refuses what they made of it; return which it was."""
    try:
        _hand_over(domain, xml, flags)
    except (InvalidRequest, Precondition, Unsupported) as error:
        if plain in ("", xml):
            raise
        _log.warning("libvirt refuses a disk as plugins changed it; it is attached without", domain=domain.name(), error=error.message)
        _hand_over(domain, plain, flags)
        return plain
    return xml


def _hand_over(domain: libvirt.virDomain, xml: str, flags: int) -> None:
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


def _proven(domain: libvirt.virDomain, wanted: Request, config: Device | None) -> tuple[Device, Seen]:
    """Read back what libvirt and QEMU have now; `config` is what libvirt said to have saved, or had."""
    seen = domains.observe(domain, wanted.alias, wanted.source.source, config=config)
    device = seen.live or seen.config
    if device is None or device.source != wanted.source.source or (seen.active and not (seen.live and seen.qemu)):
        raise InDoubt(f"{domain.name()}: the disk {wanted.alias} is not where it should be after the attach; repeat the call")
    return device, seen
