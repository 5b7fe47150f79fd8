"""Domains and their disks: find, observe, detach, and what an attach that died left behind.

`begin_detach` and `clear` run beside no other change of the same domain (:mod:`volgate.hypervisor.calls`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import libvirt

from volgate.errors import InUse, NotFound, Precondition, Unreachable
from volgate.hypervisor import qmp, repair
from volgate.hypervisor.devices import Device, Layout, in_qemu, layout
from volgate.hypervisor.faults import translated
from volgate.hypervisor.marks import HELD
from volgate.hypervisor.repair import Orphans

__all__ = ["CONFIG", "LIVE", "Seen", "begin_detach", "clear", "layouts", "lookup", "observe", "orphans", "require_live"]

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
_LOOKS, _BETWEEN_LOOKS = 20, 0.1  # libvirt takes up to 2 seconds to record that a QEMU died


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


def lookup(connection: libvirt.virConnect, reference: str) -> libvirt.virDomain:
    """Find a domain by uuid or name. Raises NotFound (DOMAIN_NOT_FOUND)."""
    with translated(f"find domain {reference!r}"):
        try:
            return connection.lookupByUUIDString(reference)
        except libvirt.libvirtError:
            return connection.lookupByName(reference)


def observe(domain: libvirt.virDomain, alias: str, source: str, *, config: Device | EllipsisType | None = ...) -> Seen:
    """Look where a disk is, by its alias, deciding nothing. A domain that starts, stops or dies meanwhile is looked at again.

    `config` is what libvirt has just acknowledged that the persistent XML of a running domain has; left out, it is read.
    """
    for _ in range(_LOOKS):
        try:
            return _observe(domain, alias, source, config)
        except (Precondition, Unreachable) as error:
            if error.reason not in ("DOMAIN_STATE", "QEMU_LOST"):
                raise
        time.sleep(_BETWEEN_LOOKS)
    return _observe(domain, alias, source, config)


def _observe(domain: libvirt.virDomain, alias: str, source: str, config: Device | EllipsisType | None = ...) -> Seen:
    if config is ...:
        now, then = layouts(domain)
        config = then.by_alias(alias) if then else None
    elif not (now := _layout(domain)).running:
        config = now.by_alias(alias)
    live = now.by_alias(alias) if now.running else None
    if not now.running:
        qemu = False
    elif live is not None:
        opened = _opened(domain, alias)
        qemu = opened is not None
        if opened and opened != in_qemu(live.source):  # after a snapshot that libvirtd's death cut in two QEMU knows better
            live = replace(live, source=opened)
    else:
        qemu = _left(domain, alias, source)
    return Seen(now.running, live, config, qemu)


def _opened(domain: libvirt.virDomain, alias: str) -> str | None:
    """What QEMU's device writes to, "" if QEMU does not say; None if QEMU has no such device."""
    return next((drive.files[0] if drive.files else "" for drive in qmp.drives(domain) if drive.device == alias), None)


def _left(domain: libvirt.virDomain, alias: str, source: str) -> bool:
    """Whether QEMU has a disk that libvirt does not list. A device keeps a node of its file: without such a node that is one question."""
    if source and all(node.files and in_qemu(source) not in node.files for node in qmp.nodes(domain)):
        return False
    left = repair.look(domain, [source])
    return alias in left.devices or bool(left.nodes)


def layouts(domain: libvirt.virDomain) -> tuple[Layout, Layout | None]:
    """The live layout (the persistent one of a domain that is off), and the persistent one if there is one."""
    now = _layout(domain)
    with translated(f"read {domain.name()}"):
        return now, layout(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain.isPersistent() else None


def _layout(domain: libvirt.virDomain) -> Layout:
    with translated(f"read {domain.name()}"):
        return layout(domain.XMLDesc())


def begin_detach(domain: libvirt.virDomain, alias: str, source: str, *, settle: Callable[[], None]) -> bool:
    """Take a disk out of the configuration and ask the guest to release it; return whether the guest was asked.

    `settle` is called first where QEMU writes to another file than libvirt or the configuration has it, or an earlier attempt holds the
    guest still (:func:`volgate.hypervisor.overlay.settle`).
    Raises InUse (IDENTITY_MISMATCH) before anything is done if the alias holds another source.
    """
    now, then = layouts(domain)
    live = now.by_alias(alias) if now.running else None
    config = then.by_alias(alias) if then else None
    if HELD in now.marks or (live is not None and _differs(domain, live, config)):
        settle()
        now, then = layouts(domain)
        live = now.by_alias(alias) if now.running else None
    config = then.by_alias(alias) if then else None
    for device in (live, config):
        if device is not None and source and device.source != source:
            raise InUse(
                f"{domain.name()}: alias {alias} holds {device.source}, not {source}; nothing was detached", reason="IDENTITY_MISMATCH"
            )
    if config is not None:
        _remove(domain, alias, CONFIG)
    if live is not None:
        _remove(domain, alias, LIVE)
    return live is not None


def _differs(domain: libvirt.virDomain, live: Device, config: Device | None) -> bool:
    """Whether QEMU writes to another file than libvirt or the configuration has it."""
    opened = _opened(domain, live.alias) or in_qemu(live.source)
    return opened != in_qemu(live.source) or (config is not None and config.source != live.source)


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
    if not layouts(domain)[0].running:
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
