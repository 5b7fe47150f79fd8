"""The `<disk>` element: one pure function. The format and the chain are always explicit, so nothing follows what a header says."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from volgate.connection import DiskSource
from volgate.errors import InvalidRequest, Precondition
from volgate.model import Access, Bus, CacheMode, DiskOptions, Format, IoMode, Qos

__all__ = ["render"]

_SERIAL_MOST = 20  # virtio-blk cuts longer ones silently


def render(source: DiskSource, options: DiskOptions, *, alias: str, target: str, address: dict[str, str] | None = None) -> str:
    """Render a disk. `address` is the attributes of `<address>`, None leaves it to libvirt.

    Raises InvalidRequest (io, iothread, serial), Precondition (a shared qcow2).
    """
    _check(source, options)
    disk = ET.Element("disk", type="file", device="disk", snapshot="external")
    driver = ET.SubElement(disk, "driver", name="qemu", type=source.format.value, cache=options.cache.value, io=options.io.value)
    driver.set("error_policy", options.error_policy.value)
    if options.discard:
        driver.set("discard", "unmap")
        driver.set("detect_zeroes", "unmap")
    if options.iothread and options.bus is Bus.VIRTIO_BLK:
        driver.set("iothread", str(options.iothread))
    ET.SubElement(disk, "source", file=source.path)
    _chain(disk, source.chain)
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


def _check(source: DiskSource, options: DiskOptions) -> None:
    if options.io is IoMode.NATIVE and options.cache not in (CacheMode.NONE, CacheMode.DIRECTSYNC):
        raise InvalidRequest(f"options.io: native needs cache none or directsync, not {options.cache}", field="options.io")
    if len(options.serial) > _SERIAL_MOST:
        raise InvalidRequest(f"options.serial: at most {_SERIAL_MOST} characters reach a guest", field="options.serial")
    if options.access is Access.SHARED and source.format is not Format.RAW:
        raise Precondition(f"options.access: {source.format} cannot be shared by writers; use raw", field="options.access")


def _chain(parent: ET.Element, chain: tuple[tuple[str, Format], ...]) -> None:
    """Nest the layers below; the empty element at the end says that there are no more."""
    for path, kind in chain:
        store = ET.SubElement(parent, "backingStore", type="file")
        ET.SubElement(store, "format", type=kind.value)
        ET.SubElement(store, "source", file=path)
        parent = store
    ET.SubElement(parent, "backingStore")


def _iotune(disk: ET.Element, qos: Qos) -> None:
    limits = {name: getattr(qos, name) for name in Qos.__dataclass_fields__ if getattr(qos, name)}
    if limits:
        tune = ET.SubElement(disk, "iotune")
        for name, value in limits.items():
            ET.SubElement(tune, name).text = str(value)
