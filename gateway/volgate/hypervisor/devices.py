"""What a domain's XML says about its disks, and where there is room for one more. Pure functions."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from xml.etree import ElementTree as ET

from volgate.connection import rbd_source
from volgate.errors import OutOfSpace
from volgate.hypervisor.secrets import cluster_of
from volgate.model import Bus

__all__ = ["Device", "Layout", "Place", "free_place", "in_qemu", "layout", "parse_disk"]

_MARKS = "{urn:volgate:"

_SCSI_TARGETS = 255  # of a virtio-scsi controller
_VIRTIO = {"virtio-scsi", "virtio-transitional", "virtio-non-transitional"}


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
    element: ET.Element = field(compare=False, repr=False)

    @property
    def xml(self) -> str:
        """The `<disk>`; written when asked for: a domain's XML is read many times and has many disks."""
        return ET.tostring(self.element, encoding="unicode")

    @property
    def encrypted(self) -> bool:
        """Whether QEMU opens a LUKS layer of it."""
        return self.element.find("source/encryption") is not None

    @property
    def place(self) -> str:
        """The guest's bus address, readable."""
        kind = self.address.get("type", "")
        order = ("controller", "bus", "target", "unit") if kind == "drive" else ("domain", "bus", "slot", "function")
        return f"{kind}:" + ":".join(self.address.get(key, "0") for key in order) if kind else ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A domain's XML as far as disks go. `running`: it is the live one. `scsi` are the virtio-scsi controllers, `taken` all SCSI ones.

    `marks` are those of :mod:`volgate.hypervisor.marks`.
    """

    running: bool
    disks: tuple[Device, ...]
    scsi: frozenset[int]
    taken: frozenset[int]
    iothreads: frozenset[int]
    marks: frozenset[str] = frozenset()

    def by_alias(self, alias: str) -> Device | None:
        """The disk of an alias."""
        return next((device for device in self.disks if device.alias == alias), None)

    def by_source(self, source: str) -> Device | None:
        """The disk whose top layer is a file or an image; of a disk that does not tell its cluster, the image's name decides."""
        unsure = {source, rbd_source("", in_qemu(source).removeprefix("librbd:"))}
        return next((device for device in self.disks if device.source in unsure), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a new disk goes; `address` is None where the choice is libvirt's. `controller` is a virtio-scsi controller's number."""

    target: str
    address: dict[str, str] | None = None
    controller: int | None = None


def in_qemu(source: str) -> str:
    """What QEMU tells of a source, as :func:`volgate.hypervisor.qmp.opened` reads it: the path, or an image without its cluster."""
    scheme, colon, rest = source.partition(":")
    return f"librbd:{rest.partition('/')[2]}" if scheme == "rbd" and colon else source


def layout(xml: str) -> Layout:
    """Read a domain's XML."""
    root = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    controllers = root.findall("./devices/controller[@type='scsi']")
    listed = {int(thread.get("id", "0")) for thread in root.iterfind("./iothreadids/iothread")}
    return Layout(
        running=root.get("id") is not None,
        disks=tuple(_device(disk) for disk in root.iterfind("./devices/disk")),
        scsi=frozenset(int(c.get("index", "0")) for c in controllers if c.get("model") in _VIRTIO),
        taken=frozenset(int(c.get("index", "0")) for c in controllers),
        iothreads=frozenset(listed or range(1, int(root.findtext("iothreads") or "0") + 1)),
        marks=frozenset(e.tag[1:].partition("}")[0] for e in root.iterfind("./metadata/*") if e.tag.startswith(_MARKS)),
    )


def parse_disk(xml: str) -> Device:
    """Read one disk."""
    return _device(ET.fromstring(xml))  # noqa: S314  # libvirt's own answer, or what we rendered


def free_place(layouts: Sequence[Layout], beside: Iterable[Device], bus: Bus) -> Place:
    """The first place that is free in every layout (live, persistent) and beside disks still to come.

    The SCSI address is explicit: libvirt's own choice ends at 7 disks of a controller. Raises OutOfSpace (NO_FREE_SLOT).
    """
    found = [*(device for one in layouts for device in one.disks), *beside]
    target = _free_target({device.target for device in found}, bus)
    if bus is Bus.VIRTIO_BLK:
        return Place(target)
    controllers = sorted({number for one in layouts for number in one.scsi})
    foreign = {number for one in layouts for number in one.taken - one.scsi}
    for controller in [number for number in controllers if number not in foreign] or [_free_number(controllers, foreign)]:
        taken = {
            int(d.address.get("target", "0")) for d in found if d.bus == "scsi" and d.address.get("controller", "0") == str(controller)
        }
        for number in range(_SCSI_TARGETS):
            if number not in taken:
                address = {"type": "drive", "controller": str(controller), "bus": "0", "target": str(number), "unit": "0"}
                return Place(target, address, controller)
    raise OutOfSpace("every virtio-scsi controller of the domain is full; add one", reason="NO_FREE_SLOT")


def _free_number(controllers: Iterable[int], foreign: Iterable[int]) -> int:
    taken = {*controllers, *foreign}
    return next(number for number in count() if number not in taken)


def _free_target(taken: set[str], bus: Bus) -> str:
    """The first free name: vda, vdb, ..., vdaa, ..."""
    prefix = "vd" if bus is Bus.VIRTIO_BLK else "sd"
    return next(name for number in count() if (name := prefix + _letters(number)) not in taken)


def _letters(number: int) -> str:
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = string.ascii_lowercase[rest] + letters
    return letters


def _device(disk: ET.Element) -> Device:
    def attribute(path: str, name: str) -> str:
        found = disk.find(path)
        return (found.get(name) or "") if found is not None else ""

    def network(name: str) -> str:
        protocol = attribute("source", "protocol")
        if name and protocol == "iscsi":
            return f"iscsi:{name}"
        if not name or protocol != "rbd":
            return name
        return rbd_source(cluster_of(attribute("source/auth/secret", "usage")), name)

    address = disk.find("address")
    return Device(
        alias=attribute("alias", "name"),
        target=attribute("target", "dev"),
        bus=attribute("target", "bus"),
        source=attribute("source", "file") or attribute("source", "dev") or network(attribute("source", "name")),
        serial=disk.findtext("serial") or "",
        address=dict(address.attrib) if address is not None else {},
        indexes=tuple(index for source in disk.iter("source") if (index := source.get("index"))),
        element=disk,
    )
