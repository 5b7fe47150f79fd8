"""What is done to a disk under a running guest: grow it, put a new layer on top."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from volgate.connection import FileSource
from volgate.errors import InUse, OutOfRange, Precondition, Unreachable
from volgate.hypervisor import qmp
from volgate.hypervisor.devices import Device, layout
from volgate.hypervisor.disk_xml import with_source
from volgate.hypervisor.faults import translated

__all__ = ["configure_overlay", "frozen", "resize", "switch_overlay"]

_FREEZE_SECONDS = 10.0  # a guest is thawed after this, whatever happens to us
_SNAPSHOT = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)


def resize(domain: libvirt.virDomain, device: Device, size: int) -> int:
    """Grow to `size` bytes; equal is success, smaller is never done (libvirt would do it). Raises OutOfRange."""
    now = _size(domain, device.alias)
    if now > size:
        raise OutOfRange(f"{device.target} of {domain.name()} has {now} bytes; it is not made smaller")
    if now < size:
        _refuse_job(domain, device)
        with translated(f"grow {device.target} of {domain.name()}", mutation=True):
            domain.blockResize(device.target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    return _size(domain, device.alias)


def _size(domain: libvirt.virDomain, alias: str) -> int:
    for drive in qmp.drives(domain):
        if drive.device == alias:
            return drive.size
    raise Unreachable(f"QEMU of {domain.name()} does not show {alias}")


def switch_overlay(domain: libvirt.virDomain, device: Device, top: FileSource, base: str) -> None:
    """Make QEMU write to `top`; done already is success. Raises InUse (another source), Precondition (a job runs)."""
    if device.source == top.path:
        return
    if device.source != base:
        raise InUse(f"{device.target} of {domain.name()} has {device.source}, neither {base} nor {top.path}", reason="IDENTITY_MISMATCH")
    _refuse_job(domain, device)
    with translated(f"snapshot {device.target} of {domain.name()}", mutation=True):
        domain.snapshotCreateXML(_snapshot_xml(domain, device, top), _SNAPSHOT)


def configure_overlay(domain: libvirt.virDomain, alias: str, top: FileSource) -> None:
    """Make the persistent configuration, if it has the disk, name `top` and its chain."""
    if not domain.isPersistent():
        return
    with translated(f"configure {alias} of {domain.name()}", mutation=True):
        device = layout(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).by_alias(alias)
        if device is None or device.source == top.path:
            return
        domain.updateDeviceFlags(with_source(device.xml, top), libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _snapshot_xml(domain: libvirt.virDomain, device: Device, top: FileSource) -> str:
    """A snapshot of exactly this disk: every other one is named and left out."""
    root = ET.Element("domainsnapshot")
    listed = ET.SubElement(root, "disks")
    for other in layout(domain.XMLDesc()).disks:
        if other.target != device.target:
            ET.SubElement(listed, "disk", name=other.target, snapshot="no")
    disk = ET.SubElement(listed, "disk", name=device.target, snapshot="external", type="file")
    ET.SubElement(disk, "driver", type=top.format.value)
    ET.SubElement(disk, "source", file=top.path)
    return ET.tostring(root, encoding="unicode")


def _refuse_job(domain: libvirt.virDomain, device: Device) -> None:
    """Libvirt would block for 30 seconds and then fail; say it at once."""
    with translated(f"look at the jobs of {domain.name()}"):
        if domain.blockJobInfo(device.target, 0) or domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            raise Precondition(
                f"a block job or backup runs on {device.target} of {domain.name()}; wait for it or cancel it", reason="DOMAIN_BUSY"
            )


@contextmanager
def frozen(domain: libvirt.virDomain) -> Iterator[None]:
    """Freeze the guest's file systems through its agent, for at most ten seconds. Raises Precondition (NO_AGENT)."""
    try:
        libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-ping"}), 5, 0)
        domain.fsFreeze()
    except libvirt.libvirtError as error:
        raise Precondition(f"quiesce: the guest agent of {domain.name()} does not freeze: {error}", reason="NO_AGENT") from error
    timer = threading.Timer(_FREEZE_SECONDS, _thaw, (domain,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _thaw(domain)


def _thaw(domain: libvirt.virDomain) -> None:
    with translated(f"thaw {domain.name()}"):
        domain.fsThaw()
