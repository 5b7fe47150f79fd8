"""A new layer on top of a disk that a guest writes to; and what becomes of it when libvirtd dies in the middle.

QEMU may then write to the new layer while libvirt believes the old one: a detach, a resize or a second snapshot would hit the
wrong node, and nothing tells libvirt the truth. So the layer is merged back and the snapshot is cut again from the start.

The configuration names the new layer before QEMU writes to it, and the old one again while nothing is written: a guest that is
restarted meanwhile finds all that it wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from volgate.connection import FileSource
from volgate.errors import InDoubt, InUse, Precondition, Unreachable, Unsupported, VolgateError
from volgate.hypervisor import qmp, repair
from volgate.hypervisor.block_jobs import refuse_job
from volgate.hypervisor.devices import Device, in_qemu, layout
from volgate.hypervisor.disk_xml import layers, with_layers_of, with_source
from volgate.hypervisor.domains import require_live
from volgate.hypervisor.faults import translated
from volgate.hypervisor.marks import HELD, held, let_go, mark, merging, unmark

__all__ = ["configure", "refuse_torn", "settle", "switch"]

_SNAPSHOT = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)
_TICK = 0.01
_LISTED_AGAIN = 10
_DISK_WENT = ("too many disk snapshot requests", "no disk named")


def switch(domain: libvirt.virDomain, alias: str, top: FileSource, base: str, *, unwritten: Callable[[], bool], deadline: float) -> None:
    """Make QEMU write to `top` instead of `base`; done already is success. `unwritten` tells whether `top` is still empty.

    Raises InUse (the disk is on another source), Precondition (a job runs), Unreachable (undone), InDoubt.
    """
    device = require_live(domain, alias)
    if device.source == top.path:
        return
    if device.source != base:
        raise InUse(f"{device.target} of {domain.name()} has {device.source}, neither {base} nor {top.path}", reason="IDENTITY_MISMATCH")
    refuse_job(domain, device)
    repair.repair(domain, [top.path], deadline=deadline)
    if not unwritten():
        raise Unreachable(
            f"{top.path} holds what {domain.name()} wrote before libvirt died; that is merged back, repeat the call", reason="LIBVIRT_LOST"
        )
    configure(domain, alias, top)
    try:
        _cut(domain, device, top)
    except VolgateError as error:
        if not isinstance(error, InDoubt):
            _follow(domain, alias)
        raise


def _cut(domain: libvirt.virDomain, device: Device, top: FileSource) -> None:
    """Let libvirt put the layer on top. Another disk that a guest lets go of after it was listed is one too many: listed again then."""
    for attempt in range(_LISTED_AGAIN):
        try:
            with translated(f"snapshot {device.target} of {domain.name()}", mutation=True):
                domain.snapshotCreateXML(_snapshot_xml(domain, device, top), _SNAPSHOT)
        except (Precondition, Unsupported) as error:
            if not any(mark in error.message for mark in _DISK_WENT) or attempt == _LISTED_AGAIN - 1:
                raise
        else:
            return


def refuse_torn(domain: libvirt.virDomain, alias: str, top: FileSource, base: str) -> None:
    """Raise Unreachable (OVERLAY_TORN) if the domain uses `top` and `base` holds half of it: a merge was cut off by the guest's end.

    Called after :func:`settle`: whatever else was being merged is merged by then.
    """
    with translated(f"read {domain.name()}"):
        now = layout(domain.XMLDesc())
    if merging(alias) not in now.marks:
        return
    device = now.by_alias(alias)
    if device is not None and device.source == top.path:
        raise Unreachable(
            f"{domain.name()} started on {top.path} while that was being merged into {base}: {base} holds no one moment, and the "
            "snapshot is cut anew; repeat the call",
            reason="OVERLAY_TORN",
        )
    unmark(domain, merging(alias))


def configure(domain: libvirt.virDomain, alias: str, top: FileSource) -> None:
    """Make the persistent configuration, if it has the disk, name `top` and its chain."""
    with translated(f"configure {alias} of {domain.name()}", mutation=True):
        if not domain.isPersistent():
            return
        device = layout(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).by_alias(alias)
        if device is None or device.source == top.path:
            return
        domain.updateDeviceFlags(with_source(device.xml, top), libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _follow(domain: libvirt.virDomain, alias: str) -> None:
    """Make the persistent configuration name what QEMU writes to, where the one is a layer of the other."""
    with translated(f"configure {alias} of {domain.name()}", mutation=True):
        if not domain.isPersistent():
            return
        live = layout(domain.XMLDesc()).by_alias(alias)
        config = layout(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).by_alias(alias)
        if live is None or config is None or live.source == config.source:
            return
        if live.source in layers(config.xml) or config.source in layers(live.xml):
            domain.updateDeviceFlags(with_layers_of(config.xml, live.xml), libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def settle(domain: libvirt.virDomain, alias: str, *, deadline: float) -> None:
    """Merge back a layer that QEMU writes to and libvirt does not know of, if there is one; the configuration follows.

    A guest that an earlier attempt held when it died is let go.
    Raises InUse (IDENTITY_MISMATCH: QEMU is somewhere else altogether), Precondition (QEMU_REFUSED: the merge failed),
    Unreachable (not merged by `deadline`, monotonic seconds).
    """
    with translated(f"read {domain.name()}"):
        now = layout(domain.XMLDesc())
    if HELD in now.marks:
        let_go(domain)
    device = now.by_alias(alias) if now.running else None
    drive = next((drive for drive in qmp.drives(domain) if drive.device == alias), None) if device else None
    if device is None or drive is None or not drive.files:
        return
    if drive.files[0] == in_qemu(device.source):
        if merging(alias) in now.marks:
            _tidy(domain, device, deadline)
        _follow(domain, alias)
        return
    if drive.files[1:2] != (device.source,):
        raise InUse(f"{alias} of {domain.name()}: QEMU has {drive.files[0]}, libvirt {device.source}", reason="IDENTITY_MISMATCH")
    below = next((node.name for node in qmp.nodes(domain) if node.index in device.indexes and node.files[:1] == (device.source,)), "")
    _merge(domain, drive, below.replace("-storage", "-format"), deadline)
    unmark(domain, merging(alias))
    repair.repair(domain, [drive.files[0]], deadline=deadline)


def _tidy(domain: libvirt.virDomain, device: Device, deadline: float) -> None:
    """Take away what is left in QEMU of a merge whose end nobody saw: the job, and the layer that was on top."""
    job = f"vg-merge-{device.alias}"
    if _job(domain, job).get("status") == "concluded":
        qmp.command(domain, "job-dismiss", id=job)
    above = [node.files[0] for node in qmp.nodes(domain) if device.source in node.files[1:] and node.index not in device.indexes]
    repair.repair(domain, above, deadline=deadline)


def _merge(domain: libvirt.virDomain, drive: qmp.Drive, below: str, deadline: float) -> None:
    """Commit the top layer into the node below and go back to that; a merge that was begun before goes on.

    A merge that fails leaves the guest on the top layer, where all its data is. Raises Precondition (QEMU_REFUSED, in QEMU's words).
    """
    job = f"vg-merge-{drive.device}"
    if _job(domain, job).get("status") == "concluded":
        _await(domain, job, drive, "concluded", deadline)
    if not _job(domain, job):
        mark(domain, merging(drive.device))
        qmp.command(domain, "block-commit", **{"job-id": job, "device": drive.node, "base-node": below, "auto-dismiss": False})
    _await(domain, job, drive, "ready", deadline)
    with held(domain):  # now both layers hold the same, and the guest may start from either
        _await(domain, job, drive, "synchronous", deadline)
        _follow(domain, drive.device)
        if _job(domain, job).get("status") == "ready":
            qmp.command(domain, "job-complete", id=job)
        _await(domain, job, drive, "concluded", deadline)


def _await(domain: libvirt.virDomain, job: str, drive: qmp.Drive, wanted: str, deadline: float) -> None:
    """Wait until a merge is so far, or has ended well. Raises Precondition (it failed), Unreachable (it takes longer)."""
    while found := _job(domain, job):
        if found["status"] == "concluded":  # it waits for us, or a failure would look like a merge that was not begun
            qmp.command(domain, "job-dismiss", id=job)
            if "error" in found:
                message = f"merge {drive.files[0]} of {domain.name()} back into {drive.files[1]}: {found['error']}; the guest goes on"
                raise Precondition(f"{message} on the former: remove the cause and repeat the call", reason="QEMU_REFUSED")
            return
        behind = found["total-progress"] - found["current-progress"]
        if found["status"] == "ready" and (wanted == "ready" or (wanted == "synchronous" and not behind)):
            return
        if time.monotonic() > deadline:
            raise Unreachable(f"{drive.files[0]} of {domain.name()} is still being merged back; repeat the call", reason="DOMAIN_BUSY")
        time.sleep(_TICK)


def _job(domain: libvirt.virDomain, job: str) -> dict[str, Any]:
    """A merge as QEMU has it; nothing if there is none."""
    return next((found for found in qmp.command(domain, "query-jobs") if found["id"] == job), {})


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
