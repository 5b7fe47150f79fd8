"""What libvirt and its QEMU can do of what Volgate uses: asked of them. Libvirt asks QEMU itself, by starting one, and keeps the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import libvirt

from volgate.connection import FileSource
from volgate.hypervisor.disk_xml import render
from volgate.hypervisor.faults import translated
from volgate.model import Bus, DiskOptions, Feature, Format, IoMode

__all__ = ["Offered", "drives", "probe", "read_capabilities", "read_domain_capabilities", "uring_allowed"]

_URING_SWITCH = Path("/proc/sys/kernel/io_uring_disabled")  # since Linux 6.6
_REFUSALS = (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_XML_ERROR)
_DOMAIN = (
    "<domain type={kind}><name>volgate-probe</name><memory>65536</memory><os><type arch={arch} machine={machine}>hvm</type></os>"
    "<devices><emulator>{emulator}</emulator>{devices}</devices></domain>"
)
_CONTROLLER = "<controller type='scsi' index='0' model='virtio-scsi'/>"
_TRIALS = {
    Feature.VIRTIO_BLK: (DiskOptions(), ""),
    Feature.VIRTIO_SCSI: (DiskOptions(bus=Bus.VIRTIO_SCSI), _CONTROLLER),
    Feature.IO_URING: (DiskOptions(io=IoMode.IO_URING), ""),
}
"""Disks as an attach would hand them over, and what they need beside them."""
_NAMESPACED = (
    "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/namespace/image'>"
    "<host name='127.0.0.1' port='6789'/></source><target dev='vda' bus='virtio'/></disk>"
)
_MODULES = ("usr/lib*/qemu", "usr/lib/*/qemu", "usr/lib*/qemu-kvm", "usr/lib*/*/qemu-kvm")
_DRIVERS = {Feature.RBD: ("block-rbd.so", b"librbd.so"), Feature.LIBISCSI: ("block-iscsi.so", b"libiscsi.so")}
"""What a driver of QEMU is in: a module, or QEMU itself, which then names the library."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What libvirt says of its default emulator for the host's own architecture."""

    kind: str
    arch: str
    machine: str
    emulator: str
    features: frozenset[Feature]


def probe(connection: libvirt.virConnect) -> tuple[Feature, ...]:
    """The features in order of their names; none where the driver is not QEMU's. No domain is defined or started.

    The first time libvirt may start each installed QEMU, which takes seconds. Raises Unreachable.
    """
    try:
        described = connection.getDomainCapabilities()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return ()
        with translated("ask for the capabilities of domains"):
            raise
    offered = read_domain_capabilities(described)
    with translated("ask for the capabilities"):
        found = offered.features | read_capabilities(connection.getCapabilities(), offered.arch)
    found |= {feature for feature in _TRIALS if _takes(connection, offered, feature)}
    found |= {feature for feature in _DRIVERS if drives(feature, offered.emulator)}
    if Feature.RBD in found and _names_namespaces(connection, offered):
        found |= {Feature.RBD_NAMESPACES}
    return tuple(sorted(found if uring_allowed() else found - {Feature.IO_URING}))


def read_domain_capabilities(xml: str) -> Offered:
    """Read `<domainCapabilities>`."""
    root = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    marks = {
        Feature.IOTHREADS: "./iothreads",
        Feature.BLOCKDEV: "./features/backingStoreInput",  # libvirt heeds <backingStore>, as it can only with -blockdev
        Feature.LUKS: "./features/backingStoreInput",  # QEMU's driver is older, and no trial goes without a passphrase in libvirt
        Feature.INCREMENTAL_BACKUP: "./features/backup",
    }
    return Offered(
        kind=root.findtext("domain", ""),
        arch=root.findtext("arch", ""),
        machine=root.findtext("machine", ""),
        emulator=root.findtext("path", ""),
        features=frozenset(feature for feature, path in marks.items() if root.find(f"{path}[@supported='yes']") is not None),
    )


def read_capabilities(xml: str, arch: str) -> frozenset[Feature]:
    """Read `<capabilities>` for guests of an architecture."""
    root = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer
    for guest in root.findall("guest"):
        told = guest.find(f"arch[@name='{arch}']"), guest.find("features/disksnapshot[@default='on']")
        if guest.findtext("os_type") == "hvm" and None not in told:
            return frozenset({Feature.EXTERNAL_SNAPSHOTS})
    return frozenset()


def drives(feature: Feature, emulator: str, root: Path = Path("/")) -> bool:
    """Whether a QEMU has the driver (RBD, LIBISCSI), built in or as a module; QEMU itself lists it without the module too."""
    module, library = _DRIVERS[feature]
    if any(folder.joinpath(module).exists() for pattern in _MODULES for folder in root.glob(pattern)):
        return True
    try:
        return library in Path(emulator).read_bytes()
    except OSError:
        return False


def uring_allowed(switch: Path = _URING_SWITCH) -> bool:
    """Whether the kernel lets an unprivileged QEMU use io_uring."""
    try:
        return switch.read_text(encoding="ascii").strip() == "0"
    except FileNotFoundError:
        return True


def _takes(connection: libvirt.virConnect, offered: Offered, feature: Feature) -> bool:
    """Whether libvirt can make a command line for the default emulator with such a disk; it does not run it."""
    options, beside = _TRIALS[feature]
    disk = render(FileSource("/nonexistent", Format.RAW), options, alias="ua-vg-probe", target="vda" if not beside else "sda")
    return bool(_command_line(connection, offered, feature, beside + disk))


def _names_namespaces(connection: libvirt.virConnect, offered: Offered) -> bool:
    """Whether libvirt tells QEMU the namespace of an image; before 11.6 it takes `namespace/image` for the image's name."""
    line = _command_line(connection, offered, Feature.RBD_NAMESPACES, _NAMESPACED)
    return '"namespace":"namespace"' in line.replace(" ", "")


def _command_line(connection: libvirt.virConnect, offered: Offered, feature: Feature, devices: str) -> str:
    """The command line that libvirt makes for a domain with these devices, "" where it refuses them."""
    told = {name: quoteattr(getattr(offered, name)) for name in ("kind", "arch", "machine")}
    domain = _DOMAIN.format(**told, emulator=escape(offered.emulator), devices=devices)
    try:
        return str(connection.domainXMLToNative("qemu-argv", domain))
    except libvirt.libvirtError as error:
        if error.get_error_code() in _REFUSALS:
            return ""
        with translated(f"ask for {feature}"):
            raise
