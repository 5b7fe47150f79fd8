"""What a domain's XML says about its disks, and where there is room for one more. Pure functions."""

from __future__ import annotations

import string
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from volgate.errors import OutOfSpace
from volgate.model import Bus

__all__ = ["Device", "by_alias", "by_source", "disks", "free_scsi", "free_target", "needs_controller", "require_port"]

_SCSI_TARGETS = 255


@dataclass(frozen=True, slots=True)
class Device:
    """One disk of a domain. `indexes` are libvirt's numbers of its layers in QEMU's node names."""

    alias: str
    target: str
    bus: str
    source: str
    serial: str
    address: dict[str, str]
    indexes: tuple[str, ...]
    xml: str

    @property
    def place(self) -> str:
        """The guest's bus address, readable."""
        kind = self.address.get("type", "")
        order = ("controller", "bus", "target", "unit") if kind == "drive" else ("domain", "bus", "slot", "function")
        return f"{kind}:" + ":".join(self.address.get(key, "0") for key in order) if kind else ""


def disks(xml: str) -> list[Device]:
    """Every disk of a domain's XML."""
    return [_device(disk) for disk in ET.fromstring(xml).iterfind("./devices/disk")]  # noqa: S314  # libvirt's own answer


def by_alias(found: list[Device], alias: str) -> Device | None:
    """The disk of an alias."""
    return next((device for device in found if device.alias == alias), None)


def by_source(found: list[Device], source: str) -> Device | None:
    """The disk whose top layer is a file."""
    return next((device for device in found if device.source == source), None)


def free_target(taken: set[str], bus: Bus) -> str:
    """The first free name: vda, vdb, ..., vdaa, ..."""
    prefix, number = ("vd" if bus is Bus.VIRTIO_BLK else "sd"), 0
    while (name := prefix + _letters(number)) in taken:
        number += 1
    return name


def free_scsi(found: list[Device]) -> dict[str, str]:
    """An explicit address on the first controller: libvirt's own choice ends at 7 disks of a controller. Raises OutOfSpace."""
    taken = {int(d.address.get("target", "0")) for d in found if d.bus == "scsi" and d.address.get("controller", "0") == "0"}
    for target in range(_SCSI_TARGETS):
        if target not in taken:
            return {"type": "drive", "controller": "0", "bus": "0", "target": str(target), "unit": "0"}
    raise OutOfSpace("the domain's virtio-scsi controller is full", reason="NO_FREE_SLOT")


def needs_controller(xml: str) -> bool:
    """Whether the domain has no virtio-scsi controller yet."""
    return not any(c.get("type") == "scsi" for c in ET.fromstring(xml).iterfind("./devices/controller"))  # noqa: S314  # libvirt's own answer


def require_port(xml: str) -> None:
    """Raise OutOfSpace if a q35 domain has no free PCIe root port for a virtio-blk disk."""
    root = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    ports = {
        int(controller.get("index", "0"))
        for controller in root.iterfind("./devices/controller[@type='pci']")
        if controller.get("model") == "pcie-root-port"
    }
    if not ports:
        return  # not a PCIe machine: its slots are libvirt's to count
    taken = {int(address.get("bus", "0"), 16) for address in root.iterfind(".//address[@type='pci']")}
    if not ports - taken:
        raise OutOfSpace(
            f"all {len(ports)} PCIe root ports of the domain are taken; use bus virtio-scsi, or add pcie-root-port controllers",
            reason="NO_FREE_SLOT",
        )


def _device(disk: ET.Element) -> Device:
    def attribute(path: str, name: str) -> str:
        found = disk.find(path)
        return (found.get(name) or "") if found is not None else ""

    address = disk.find("address")
    return Device(
        alias=attribute("alias", "name"),
        target=attribute("target", "dev"),
        bus=attribute("target", "bus"),
        source=attribute("source", "file") or attribute("source", "dev") or attribute("source", "name"),
        serial=disk.findtext("serial") or "",
        address=dict(address.attrib) if address is not None else {},
        indexes=tuple(index for source in disk.iter("source") if (index := source.get("index"))),
        xml=ET.tostring(disk, encoding="unicode"),
    )


def _letters(number: int) -> str:
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = string.ascii_lowercase[rest] + letters
    return letters
