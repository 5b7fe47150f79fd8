"""Disks of ours as libvirt has them, read back from a domain's XML: for a gateway that has lost its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import libvirt

from volgate.hypervisor.devices import Device, layout
from volgate.hypervisor.faults import translated
from volgate.hypervisor.repair import PREFIX
from volgate.hypervisor.secrets import passphrase_of
from volgate.model import Access, Bus, CacheMode, DiskOptions, ErrorPolicy, IoMode, Qos, Transport

__all__ = ["Found", "our_disks", "read_options"]


@dataclass(frozen=True, slots=True)
class Found:
    """One disk and where it is."""

    device: Device
    live: bool
    config: bool


def our_disks(domain: libvirt.virDomain) -> list[Found]:
    """Every disk whose alias is ours, in the live and in the persistent XML."""
    with translated(f"look at {domain.name()}"):
        live = layout(domain.XMLDesc()).disks if domain.isActive() else ()
        config = layout(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).disks if domain.isPersistent() else ()
    running, kept = ({disk.alias: disk for disk in disks if disk.alias.startswith(PREFIX)} for disks in (live, config))
    return [Found(disk, alias in running, alias in kept) for alias, disk in {**kept, **running}.items()]


def read_options(xml: str) -> DiskOptions:
    """What a `<disk>` was attached with: the inverse of `render`."""
    disk = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    driver = disk.find("driver")
    said = driver.attrib if driver is not None else {}
    tuned = {element.tag: int(element.text or 0) for element in disk.iterfind("iotune/*")}
    access = Access.READ_ONLY if disk.find("readonly") is not None else Access.READ_WRITE
    secret = disk.find("source/encryption/secret")
    target, cache = disk.find("target"), CacheMode(said.get("cache", CacheMode.NONE))
    return DiskOptions(
        bus=Bus.VIRTIO_SCSI if target is not None and target.get("bus") == "scsi" else Bus.VIRTIO_BLK,
        serial=disk.findtext("serial") or "",
        access=Access.SHARED if disk.find("shareable") is not None else access,
        qos=Qos(**{name: value for name, value in tuned.items() if name in Qos.__dataclass_fields__}),
        cache=cache,
        io=IoMode(said.get("io", IoMode.NATIVE if cache in (CacheMode.NONE, CacheMode.DIRECTSYNC) else IoMode.THREADS)),
        discard=said.get("discard") == "unmap",
        iothread=int(said.get("iothread", 0)),
        error_policy=_policy(said),
        transport=Transport.QEMU if disk.find("source[@protocol='iscsi']") is not None else Transport.HOST,
        passphrase=passphrase_of(secret.get("usage", "")) if secret is not None else "",
    )


def _policy(said: Mapping[str, str]) -> ErrorPolicy:
    """QEMU has one word for both that stop; the policy of reads tells them apart."""
    found = ErrorPolicy(said.get("error_policy", ErrorPolicy.STOP))
    return ErrorPolicy.RESUME if found is ErrorPolicy.STOP and said.get("rerror_policy") == ErrorPolicy.STOP else found
