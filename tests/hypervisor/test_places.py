"""Where a disk goes: targets, SCSI addresses, controllers, PCIe ports; and what is only prepared."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.hypervisor.rig import Bench
from tests.labs.domain import ROOT_PORTS, Guest
from volgate.errors import InUse, OutOfSpace, Precondition
from volgate.hosts.interface import DetachOutcome
from volgate.hypervisor.devices import Layout, Place, free_place, layout, parse_disk
from volgate.model import Bus, Format

NO_SCSI = "<controller type='scsi' index='0' model='virtio-scsi'><driver queues='1' iothread='1'/></controller>"


def test_more_than_fifty_scsi_disks_attached_at_once(bench: Bench, fresh_guest: Guest) -> None:
    plans = [bench.plan(fresh_guest.uuid, bench.volume(f"v{n}", 1 << 20, Format.RAW), bus=Bus.VIRTIO_SCSI) for n in range(56)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda wanted: bench.attach(wanted, 60.0), plans))
    assert len({disk.target for disk in done}) == len({disk.address for disk in done}) == 56
    assert {disk.serial for disk in fresh_guest.disks()} == {wanted.options.serial for wanted in plans}
    with ThreadPoolExecutor(8) as pool:
        gone = list(pool.map(lambda wanted: bench.detach(wanted, 60.0), plans))
    assert set(gone) == {DetachOutcome.GONE}
    deadline = time.monotonic() + 20
    while fresh_guest.disks():  # QEMU has let go of them; the guest's kernel takes its time with fifty-six
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "<disk" not in fresh_guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def test_no_free_port_is_told_and_scsi_still_goes(bench: Bench, fresh_guest: Guest) -> None:
    attached = []
    for number in range(ROOT_PORTS):
        wanted = bench.plan(fresh_guest.uuid, bench.volume(f"v{number}", 1 << 20, Format.RAW))
        try:
            bench.attach(wanted)
        except OutOfSpace as error:
            assert error.reason == "NO_FREE_SLOT" and "virtio-scsi" in error.message
            break
        attached.append(wanted)
    else:
        pytest.fail("there is always a slot")
    assert len(attached) >= 10 and len(fresh_guest.live_disks()) == len(attached)
    seen = bench.seen(wanted)
    assert not seen.live and not seen.config and not seen.qemu, "nothing was done"
    assert bench.attach(bench.plan(fresh_guest.uuid, bench.volume("s"), bus=Bus.VIRTIO_SCSI)).live
    assert bench.detach(attached[0]) is DetachOutcome.GONE
    assert bench.attach(wanted).live, "and the slot is used again"


def test_controller_is_added_where_it_is_missing(bench: Bench, fresh_guest: Guest) -> None:
    fresh_guest.destroy()
    bare = fresh_guest.xml.replace(NO_SCSI, "")
    assert bare != fresh_guest.xml
    fresh_guest.connection.defineXML(bare)
    wanted = bench.plan(fresh_guest.uuid, bench.volume("a"), bus=Bus.VIRTIO_SCSI)
    with pytest.raises(Precondition, match="no virtio-scsi controller 0") as refused:
        bench.host.prepare(wanted, timeout=5)
    assert refused.value.reason == "NO_CONTROLLER"
    fresh_guest.domain.create()
    done = bench.attach(wanted)
    assert done.live and done.config and done.address == "drive:0:0:0:0"
    fresh_guest.wait_agent(60)
    assert fresh_guest.wait_disk(wanted.options.serial)
    assert bench.attach(bench.plan(fresh_guest.uuid, bench.volume("b"), bus=Bus.VIRTIO_SCSI)).address == "drive:0:0:1:0"
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        tree = ET.fromstring(fresh_guest.domain.XMLDesc(flags))
        assert [c.get("model") for c in tree.findall("devices/controller[@type='scsi']")] == ["virtio-scsi"]


def test_prepared_disks_start_with_the_domain(bench: Bench, fresh_guest: Guest) -> None:
    """What prepare gives is put into a domain by somebody else: several do not collide, and the guest reads them."""
    fresh_guest.destroy()
    prepared: list[str] = []
    plans = []
    for number, bus in enumerate([Bus.VIRTIO_BLK, Bus.VIRTIO_SCSI] * 2):
        volume = bench.volume(f"v{number}")
        bench.pool.write(volume, 0x30 + number, 0, 4096)
        plans.append(bench.plan(fresh_guest.name, volume, bus=bus, beside=tuple(prepared)))
        prepared.append(bench.host.prepare(plans[-1], timeout=5))
        assert prepared[-1] == bench.host.prepare(plans[-1], timeout=5)
    found = [parse_disk(xml) for xml in prepared]
    assert [disk.target for disk in found] == ["vda", "sda", "vdb", "sdb"]
    assert [disk.place for disk in found] == ["", "drive:0:0:0:0", "", "drive:0:0:1:0"]
    assert "<disk" not in fresh_guest.domain.XMLDesc(), "nothing was attached"
    fresh_guest.connection.defineXML(fresh_guest.xml.replace("</devices>", "".join(prepared) + "</devices>"))
    fresh_guest.start(boot=True)
    for number, wanted in enumerate(plans):
        disk = fresh_guest.wait_disk(wanted.options.serial)
        assert disk and fresh_guest.run(f"head -c 4 {disk.device}") == str(number) * 4
        assert bench.seen(wanted).live and bench.seen(wanted).config
    with pytest.raises(InUse, match="already as vda"):
        bench.host.prepare(bench.plan(fresh_guest.uuid, bench.ids["v0"]), timeout=5)


def test_iothread_that_the_domain_lacks_is_named(bench: Bench, guest: Guest) -> None:
    with pytest.raises(Precondition, match=r"no iothread 3; it has \[1, 2\]") as refused:
        bench.attach(bench.plan(guest.uuid, bench.volume(), iothread=3))
    assert refused.value.field == "options.iothread" and guest.live_disks() == []


def test_two_attaches_at_once_never_plan_one_place(bench: Bench, guest: Guest) -> None:
    plans = [bench.plan(guest.uuid, bench.volume(f"v{n}", 1 << 20, Format.RAW), bus=bus) for n, bus in enumerate([*Bus] * 3)]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(bench.attach, plans))
        assert len({disk.target for disk in done}) == 6
        assert set(pool.map(bench.detach, plans)) == {DetachOutcome.GONE}


def test_places_by_the_xml_alone() -> None:
    def domain(*devices: str) -> Layout:
        return layout(f"<domain id='1'><devices>{''.join(devices)}</devices></domain>")

    def disk(target: str, bus: str, controller: int = 0, number: int = 0) -> str:
        address = f"<address type='drive' controller='{controller}' bus='0' target='{number}' unit='0'/>" if bus == "scsi" else ""
        return f"<disk type='file' device='disk'><target dev='{target}' bus='{bus}'/>{address}</disk>"

    def controller(index: int, model: str) -> str:
        return f"<controller type='scsi' index='{index}' model='{model}'/>"

    def at(target: str, number: int, place: int) -> Place:
        return Place(target, {"type": "drive", "controller": str(number), "bus": "0", "target": str(place), "unit": "0"}, number)

    letters = [f"vd{chr(97 + n)}" for n in range(26)]
    assert free_place([domain(*(disk(t, "virtio") for t in letters))], [], Bus.VIRTIO_BLK) == Place("vdaa")
    live, config = (
        domain(controller(0, "virtio-scsi"), disk("sda", "scsi")),
        domain(controller(0, "virtio-scsi"), disk("sdb", "scsi", 0, 1)),
    )
    assert free_place([live, config], [], Bus.VIRTIO_SCSI) == at("sdc", 0, 2), "what either has is taken"
    assert free_place([domain(controller(0, "lsilogic"))], [], Bus.VIRTIO_SCSI) == at("sda", 1, 0), "a foreign controller is left alone"
    full = domain(controller(0, "virtio-scsi"), controller(3, "virtio-scsi"), *(disk(f"sd{n}", "scsi", 0, n) for n in range(255)))
    assert free_place([full], [], Bus.VIRTIO_SCSI) == at("sda", 3, 0)
    with pytest.raises(OutOfSpace, match="is full"):
        free_place([domain(controller(0, "virtio-scsi"), *(disk(f"sd{n}", "scsi", 0, n) for n in range(255)))], [], Bus.VIRTIO_SCSI)
