"""The `<disk>` element: golden files, libvirt's own schema, and a real libvirt and QEMU that take every one of them.

`python -m tests.hypervisor.test_disk_xml` writes the golden files anew; read the difference before you commit it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lxml import etree

from tests.hypervisor.rig import Bench
from tests.labs.domain import Guest
from tests.plugins.directory_rig import MIB
from volgate.connection import BlockSource, DiskSource, FileSource, IscsiPortal, LibiscsiSource, RbdSource
from volgate.errors import InvalidRequest, Precondition
from volgate.hosts.interface import DetachOutcome
from volgate.hypervisor.devices import in_qemu, layout, parse_disk
from volgate.hypervisor.disk_xml import render, with_source, without_slot
from volgate.hypervisor.ours import read_options
from volgate.model import Access, Bus, CacheMode, DiskOptions, ErrorPolicy, Format, IoMode, Qos, Transport

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domainoverrides.rng")
RAW = FileSource("/pool/volumes/a.0123abcd/0000.raw", Format.RAW)
QCOW2 = FileSource("/pool/volumes/a.0123abcd/0000.qcow2", Format.QCOW2)
CHAIN = FileSource("/pool/2.qcow2", Format.QCOW2, (("/pool/1.qcow2", Format.QCOW2), ("/pool/0.raw", Format.RAW)))
SCSI_ADDRESS = {"type": "drive", "controller": "0", "bus": "0", "target": "51", "unit": "0"}
QOS = Qos(read_bytes_sec=1 << 20, write_bytes_sec=2 << 20, read_iops_sec=300, write_iops_sec=400)
FSID = "0b8ef6f1-5f3c-4f6e-9d1e-8a5d2c9b7e10"
RBD = RbdSource(FSID, "volumes/a.0123abcd", ("192.0.2.1:6789", "mon.example:3300", "[2001:db8::3]:3300"), "volgate")
BLOCK = BlockSource("/dev/disk/by-id/dm-uuid-LVM-Mk0kS4WIk4yb9qzAD1QMe0E5cfN4FPpTGraiqa5RZ5ObkFC8UGPuEKn34OyitQRm")
PORTAL, INITIATOR = IscsiPortal("192.0.2.10", 3260, "iqn.2026-01.example.gw:tgt1"), "iqn.2026-01.example.gw:kvm01"
CASES: dict[str, tuple[DiskSource, DiskOptions]] = {
    "virtio-raw": (RAW, DiskOptions()),
    "virtio-qcow2": (QCOW2, DiskOptions()),
    "virtio-chain": (CHAIN, DiskOptions(serial="vg-0123456789abcdef0")),
    "scsi-qcow2": (QCOW2, DiskOptions(bus=Bus.VIRTIO_SCSI, serial="vg-0123456789abcdef0")),
    "read-only": (QCOW2, DiskOptions(access=Access.READ_ONLY)),
    "shared": (RAW, DiskOptions(access=Access.SHARED)),
    "qos": (QCOW2, DiskOptions(qos=QOS)),
    "qos-total": (QCOW2, DiskOptions(qos=Qos(total_bytes_sec=1 << 20, total_iops_sec=100))),
    "no-discard": (QCOW2, DiskOptions(discard=False)),
    "writeback-threads": (QCOW2, DiskOptions(cache=CacheMode.WRITEBACK, io=IoMode.THREADS)),
    "writethrough-io_uring": (RAW, DiskOptions(cache=CacheMode.WRITETHROUGH, io=IoMode.IO_URING)),
    "directsync-native": (RAW, DiskOptions(cache=CacheMode.DIRECTSYNC, io=IoMode.NATIVE)),
    "iothread": (RAW, DiskOptions(iothread=2)),
    "error-report": (RAW, DiskOptions(error_policy=ErrorPolicy.REPORT)),
    "error-resume": (RAW, DiskOptions(error_policy=ErrorPolicy.RESUME)),
    "error-enospace": (RAW, DiskOptions(error_policy=ErrorPolicy.ENOSPACE)),
    "rbd": (RBD, DiskOptions(serial="vg-0123456789abcdef0")),
    "rbd-writeback": (RBD, DiskOptions(cache=CacheMode.WRITEBACK, io=IoMode.THREADS, iothread=2)),
    "rbd-scsi": (RBD, DiskOptions(bus=Bus.VIRTIO_SCSI, discard=False, access=Access.SHARED, error_policy=ErrorPolicy.RESUME)),
    "rbd-hostile-names": (RbdSource(FSID, "p'\"<&>/n/i", ("h:1",), "u_+-0"), DiskOptions(access=Access.READ_ONLY, qos=QOS)),
    "block": (BLOCK, DiskOptions(serial="vg-0123456789abcdef0")),
    "block-shared": (BLOCK, DiskOptions(access=Access.SHARED, cache=CacheMode.WRITEBACK, io=IoMode.THREADS)),
    "block-luks": (BLOCK, DiskOptions(bus=Bus.VIRTIO_SCSI, passphrase="file:/etc/volgate/passphrases/web-1")),
    "libiscsi": (LibiscsiSource(PORTAL, 7, INITIATOR), DiskOptions(serial="vg-0123456789abcdef0", transport=Transport.QEMU)),
    "libiscsi-chap": (
        LibiscsiSource(IscsiPortal("2001:db8::1", 3261, PORTAL.target), 300, INITIATOR, "u_+-0"),
        DiskOptions(bus=Bus.VIRTIO_SCSI, access=Access.SHARED, transport=Transport.QEMU),
    ),
    "hostile-names": (FileSource("/pool/a'\"<&>b.raw", Format.RAW), DiskOptions(serial="A a_0.+-")),
}


def rendered(name: str) -> str:
    source, options = CASES[name]
    scsi = options.bus is Bus.VIRTIO_SCSI
    xml = render(source, options, alias="ua-vg-0123abcd-89ef4567", target="sdaz" if scsi else "vdb", address=SCSI_ADDRESS if scsi else None)
    tree = ET.fromstring(xml)
    ET.indent(tree)
    return ET.tostring(tree, encoding="unicode") + "\n"


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    """libvirt's grammar, entered at `<disk>`."""
    grammar = f'<grammar xmlns="http://relaxng.org/ns/structure/1.0"><start><ref name="disk"/></start><include href="{SCHEMA}"/></grammar>'
    return etree.RelaxNG(etree.fromstring(grammar))


def test_schema_refuses_what_is_no_disk(schema: etree.RelaxNG) -> None:
    assert not schema.validate(
        etree.fromstring("<disk type='file' device='disk'><driver name='qemu' cache='wet'/><target dev='vda'/></disk>")
    )


@pytest.mark.parametrize("name", CASES)
def test_disk_is_as_agreed_and_valid(name: str, schema: etree.RelaxNG) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.xml").read_text(), "python -m tests.hypervisor.test_disk_xml shows the difference to git"
    assert schema.validate(etree.fromstring(rendered(name))), schema.error_log


@pytest.mark.parametrize("name", CASES)
def test_options_are_read_back_from_the_disk(name: str) -> None:
    assert read_options(rendered(name)) == CASES[name][1]


def test_golden_files_and_options_are_all_covered() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)
    used = [options for _, options in CASES.values()]
    for field in dataclasses.fields(DiskOptions):
        assert len({getattr(options, field.name) for options in used}) > 1, f"no case varies {field.name}"
    for member, of in ((m, e) for e in (Bus, Access, CacheMode, IoMode, ErrorPolicy) for m in e):
        assert any(member in dataclasses.astuple(options) for options in used), f"no case has {of.__name__} {member}"


@pytest.mark.parametrize(
    ("source", "options", "field"),
    [
        (RAW, DiskOptions(cache=CacheMode.WRITEBACK, io=IoMode.NATIVE), "options.io"),
        (BLOCK, DiskOptions(cache=CacheMode.WRITEBACK, io=IoMode.NATIVE), "options.io"),
        (RAW, DiskOptions(bus=Bus.VIRTIO_SCSI, iothread=1), "options.iothread"),
        (RAW, DiskOptions(serial="x" * 21), "options.serial"),
        (RAW, DiskOptions(serial="<&>"), "options.serial"),
        (RAW, DiskOptions(serial="a\n"), "options.serial"),
        (RAW, DiskOptions(qos=Qos(total_iops_sec=1, read_iops_sec=1)), "options.qos"),
        (RAW, DiskOptions(qos=Qos(total_bytes_sec=1, write_bytes_sec=1)), "options.qos"),
        (QCOW2, DiskOptions(access=Access.SHARED), "options.access"),
        (RBD, DiskOptions(io=IoMode.IO_URING), "options.io"),
        (RBD, DiskOptions(bus=Bus.VIRTIO_SCSI, iothread=1), "options.iothread"),
        (RbdSource(FSID, "p/i", ("h:1",), "a/b"), DiskOptions(), "user"),
        (RbdSource(FSID, "p/i", ("h:1",), ""), DiskOptions(), "user"),
        (RbdSource(FSID, "p/i", ("h:1",), "a b"), DiskOptions(), "user"),
    ],
)
def test_what_libvirt_would_refuse_is_refused_with_the_field(source: DiskSource, options: DiskOptions, field: str) -> None:
    with pytest.raises((InvalidRequest, Precondition)) as refused:
        render(source, options, alias="ua-vg-x", target="vda")
    assert refused.value.field == field


def test_disk_moves_to_another_file_and_out_of_its_slot(schema: etree.RelaxNG) -> None:
    address = {"type": "pci", "domain": "0x0000", "bus": "0x03", "slot": "0x00", "function": "0x0"}
    xml = render(QCOW2, DiskOptions(), alias="ua-vg-x", target="vda", address=address)
    moved = with_source(xml, CHAIN)
    assert moved == with_source(render(CHAIN, DiskOptions(), alias="ua-vg-x", target="vda", address=address), CHAIN)
    free = without_slot(moved)
    assert "pci" in moved and "pci" not in free and without_slot(free) == free
    for text in (moved, free):
        assert schema.validate(etree.fromstring(text)), schema.error_log


@pytest.mark.parametrize("name", [name for name, (source, _) in CASES.items() if isinstance(source, RbdSource)])
def test_an_image_is_read_back_with_its_cluster(name: str) -> None:
    source = CASES[name][0]
    found = parse_disk(rendered(name))
    assert (
        found.source == source.source == f"rbd:{FSID}/{source.path}"
        and in_qemu(found.source) == in_qemu(in_qemu(found.source)) == f"librbd:{source.path}"
    )
    assert in_qemu("/pool/a:b.raw") == "/pool/a:b.raw"


def test_images_of_the_same_name_in_two_clusters_are_two_unless_one_does_not_tell_its_cluster() -> None:
    disk = rendered("rbd")
    here, there = RBD, RbdSource("f" * 36, RBD.path, RBD.monitors, RBD.user)
    domain = "<domain><devices>{}</devices></domain>"
    assert layout(domain.format(disk)).by_source(here.source) and not layout(domain.format(disk)).by_source(there.source)
    by_hand = ET.fromstring(disk)
    secret = by_hand.find("source/auth/secret")
    assert secret is not None
    secret.set("usage", "of somebody else")
    found = layout(domain.format(ET.tostring(by_hand, encoding="unicode")))
    assert found.by_source(here.source) and found.by_source(there.source) and not found.by_source(f"rbd:{FSID}/volumes/b")


@pytest.mark.parametrize(
    "name", [name for name, (source, _) in CASES.items() if name != "hostile-names" and isinstance(source, FileSource)]
)
def test_libvirt_and_qemu_take_it(name: str, bench: Bench, guest: Guest) -> None:
    source, options = CASES[name]
    volume = bench.volume("base", format=source.format)
    if source.chain:
        bench.pool.write(volume, 0x41, 0, 4096)
        bench.pool.snapshot(volume, "s1")
        bench.pool.write(volume, 0x42, 4096, 4096)
        bench.pool.snapshot(volume, "s2")
    wanted = bench.plan(guest.uuid, volume, **{f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name != "serial"})
    done = bench.attach(wanted)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and disk.size == 8 * MIB and disk.read_only == (options.access is Access.READ_ONLY)
    if source.chain:
        assert len(wanted.connection.chain) == 2
        assert guest.run(f"head -c 8192 {disk.device} | tr -d AB | wc -c; head -c 4096 {disk.device} | tr -d A | wc -c").split() == [
            "0",
            "0",
        ]
    if not disk.read_only:
        guest.run(f"dd if=/dev/zero of={disk.device} bs=4096 count=16 oflag=direct 2>/dev/null")
    limits = guest.domain.blockIoTune(done.target)
    assert {k: v for k, v in limits.items() if v and k.endswith("_sec")} == {
        f.name: v for f in dataclasses.fields(Qos) if (v := getattr(options.qos, f.name))
    }
    assert bench.detach(wanted) is DetachOutcome.GONE
    assert not [node for node in guest.qmp("query-named-block-nodes") if node["node-name"].startswith("libvirt-")]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.xml").write_text(rendered(case))
        print(case)
