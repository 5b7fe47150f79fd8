"""The `<disk>` element: one pure function. The format and the chain are always explicit, so nothing follows what a header says."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from volgate.connection import BlockSource, DiskSource, FileSource, LibiscsiSource, RbdSource
from volgate.errors import InvalidRequest, Precondition
from volgate.hypervisor.secrets import chap_usage_of, passphrase_usage_of, usage_of
from volgate.model import Access, Bus, CacheMode, DiskOptions, ErrorPolicy, Format, IoMode, Qos

__all__ = ["layers", "render", "with_layers_of", "with_source", "without_slot"]

_KINDS = {FileSource: "file", BlockSource: "block", RbdSource: "network", LibiscsiSource: "network"}
_BY_QEMU = (RbdSource, LibiscsiSource)
_SERIAL = re.compile(r"[A-Za-z0-9_.+ -]*")
_SERIAL_MOST = 20  # virtio-blk cuts longer ones silently


def render(source: DiskSource, options: DiskOptions, *, alias: str, target: str, address: dict[str, str] | None = None) -> str:
    """Render a disk. `address` is the attributes of `<address>`, None leaves it to libvirt.

    Raises InvalidRequest (io, iothread, serial, qos), Precondition (a shared qcow2).
    """
    _check(source, options)
    disk = ET.Element("disk", type=_KINDS[type(source)], device="disk", snapshot="external")
    driver = ET.SubElement(disk, "driver", name="qemu", type=source.format.value, cache=options.cache.value)
    if not isinstance(source, _BY_QEMU):
        driver.set("io", options.io.value)
    resume = options.error_policy is ErrorPolicy.RESUME
    driver.set("error_policy", ErrorPolicy.STOP if resume else options.error_policy)
    if resume:
        driver.set("rerror_policy", ErrorPolicy.STOP)  # what it is without it too: said, it marks the disks to resume for
    if options.discard:
        driver.set("discard", "unmap")
        driver.set("detect_zeroes", "unmap")
    if options.iothread:
        driver.set("iothread", str(options.iothread))
    disk.append(place := _source(source))
    if options.passphrase:
        layer = ET.SubElement(place, "encryption", format="luks")
        ET.SubElement(layer, "secret", type="passphrase", usage=passphrase_usage_of(options.passphrase))
    disk.append(_chain(source))
    ET.SubElement(disk, "target", dev=target, bus="virtio" if options.bus is Bus.VIRTIO_BLK else "scsi")
    _iotune(disk, options.qos)
    if options.access is Access.READ_ONLY:
        ET.SubElement(disk, "readonly")
    if options.access is Access.SHARED:
        ET.SubElement(disk, "shareable")
    if options.serial:
        ET.SubElement(disk, "serial").text = options.serial
    ET.SubElement(disk, "alias", name=alias)
    if address:
        ET.SubElement(disk, "address", address)
    return ET.tostring(disk, encoding="unicode")


def with_source(xml: str, source: FileSource) -> str:
    """The same disk on another file, its chain explicit."""
    disk = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    for old in (*disk.findall("backingStore"), *disk.findall("source")):
        disk.remove(old)
    disk.append(_source(source))
    disk.append(_chain(source))
    if (driver := disk.find("driver")) is not None:
        driver.set("type", source.format.value)
    return ET.tostring(disk, encoding="unicode")


def layers(xml: str) -> list[str]:
    """The files that a disk names, top first."""
    return [path for source in ET.fromstring(xml).iter("source") if (path := source.get("file"))]  # noqa: S314  # libvirt's own answer


def with_layers_of(xml: str, other: str) -> str:
    """The same disk on the files of another; libvirt's numbers of a running domain's layers are left out."""
    disk, like = ET.fromstring(xml), ET.fromstring(other)  # noqa: S314  # libvirt's own answer
    for kind in ("source", "backingStore"):
        for old in disk.findall(kind):
            disk.remove(old)
        for new in like.findall(kind):
            for element in new.iter():
                element.attrib.pop("index", None)
            disk.append(new)
    if (driver := disk.find("driver")) is not None and (taken := like.find("driver")) is not None:
        driver.set("type", taken.get("type") or "")
    return ET.tostring(disk, encoding="unicode")


def without_slot(xml: str) -> str:
    """The same disk for the other of live and persistent: its PCI slot may be taken there, libvirt finds one."""
    disk = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    if (address := disk.find("address[@type='pci']")) is not None:
        disk.remove(address)
    return ET.tostring(disk, encoding="unicode")


def _check(source: DiskSource, options: DiskOptions) -> None:
    if isinstance(source, _BY_QEMU) and options.io is IoMode.IO_URING:
        raise InvalidRequest("options.io: io_uring is for what the host opens; QEMU reaches this itself, leave it out", field="options.io")
    if not isinstance(source, _BY_QEMU) and options.io is IoMode.NATIVE and options.cache not in (CacheMode.NONE, CacheMode.DIRECTSYNC):
        raise InvalidRequest(f"options.io: native needs cache none or directsync, not {options.cache}", field="options.io")
    if options.iothread and options.bus is Bus.VIRTIO_SCSI:
        raise InvalidRequest(
            "options.iothread: virtio-scsi disks share their controller's iothread; use virtio-blk", field="options.iothread"
        )
    if len(options.serial) > _SERIAL_MOST:
        raise InvalidRequest(f"options.serial: at most {_SERIAL_MOST} characters reach a guest", field="options.serial")
    if not _SERIAL.fullmatch(options.serial):
        raise InvalidRequest("options.serial: only letters, digits, space and _ . + - are allowed", field="options.serial")
    if options.access is Access.SHARED and source.format is not Format.RAW:
        raise Precondition(f"options.access: {source.format} cannot be shared by writers; use raw", field="options.access")
    for unit in ("bytes", "iops"):
        total, read, write = (getattr(options.qos, f"{of}_{unit}_sec") for of in ("total", "read", "write"))
        if total and (read or write):
            raise InvalidRequest(f"options.qos: total_{unit}_sec excludes read_{unit}_sec and write_{unit}_sec", field="options.qos")


def _source(source: DiskSource) -> ET.Element:
    """Where the bytes are. Every monitor is named, and no configuration file: nothing else decides which cluster it is."""
    if isinstance(source, FileSource):
        return ET.Element("source", file=source.path)
    if isinstance(source, BlockSource):
        return ET.Element("source", dev=source.path)
    if isinstance(source, LibiscsiSource):
        return _libiscsi(source)
    element = ET.Element("source", protocol="rbd", name=source.path)
    for monitor in source.monitors:
        host, _, port = monitor.rpartition(":")
        ET.SubElement(element, "host", name=host.strip("[]"), port=port)
    auth = ET.SubElement(element, "auth", username=source.user)
    ET.SubElement(auth, "secret", type="ceph", usage=usage_of(source.fsid, source.user))
    return element


def _libiscsi(source: LibiscsiSource) -> ET.Element:
    """One portal, and the initiator that the target lets in; without a name QEMU makes one up."""
    element = ET.Element("source", protocol="iscsi", name=f"{source.portal.target}/{source.lun}")
    ET.SubElement(element, "host", name=source.portal.address, port=str(source.portal.port))
    ET.SubElement(ET.SubElement(element, "initiator"), "iqn", name=source.initiator)
    if source.user:
        auth = ET.SubElement(element, "auth", username=source.user)
        ET.SubElement(auth, "secret", type="iscsi", usage=chap_usage_of(source.portal.target, source.user))
    return element


def _chain(source: DiskSource) -> ET.Element:
    """The layers below, nested; the empty element at the end says that there are no more."""
    first = store = ET.Element("backingStore")
    for path, kind in source.chain:
        store.set("type", "file")
        ET.SubElement(store, "format", type=kind.value)
        ET.SubElement(store, "source", file=path)
        store = ET.SubElement(store, "backingStore")
    return first


def _iotune(disk: ET.Element, qos: Qos) -> None:
    limits = {name: getattr(qos, name) for name in Qos.__dataclass_fields__ if getattr(qos, name)}
    if limits:
        tune = ET.SubElement(disk, "iotune")
        for name, value in limits.items():
            ET.SubElement(tune, name).text = str(value)
