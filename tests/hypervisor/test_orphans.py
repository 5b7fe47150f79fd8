"""What an attach leaves in QEMU when libvirtd dies under it: found, removed, and nothing of anybody else's touched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import libvirt
import pytest

from tests.hypervisor.rig import BUSES, Bench
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.plugins.directory_rig import MIB
from tests.soaking import SOAK, count, draw
from volgate.errors import VolgateError
from volgate.hosts.interface import AttachedDisk, DetachOutcome
from volgate.hosts.local import LocalHost
from volgate.hypervisor import qmp
from volgate.hypervisor.devices import layout
from volgate.model import Bus, Format

BARE = """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='{path}'/>
<target dev='{target}' bus='{bus}'/><alias name='{alias}'/></disk>"""
ENOUGH = 20  # orphans of bare libvirt in 48 rounds: fewer and the kills met nothing


def raw(path: Path) -> Path:
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(8 * MIB)
    path.chmod(0o600)
    return path


def stray(guest: Guest) -> list[str]:
    """What QEMU has and libvirt's XML does not, by nothing but QMP and the XML."""
    xml = guest.domain.XMLDesc()
    known = layout(xml).disks
    indexes = {index for disk in known for index in disk.indexes}
    drives = qmp.drives(guest.domain)
    devices = [drive.device for drive in drives if drive.device not in {disk.alias for disk in known}]
    names = [node["node-name"] for node in guest.qmp("query-named-block-nodes")]
    return devices + [name for name in names if name.startswith("libvirt-") and name.split("-")[1] not in indexes]


class Round:
    """Two attaches in flight at one moment, Volgate's and bare libvirt's, and libvirtd killed under both."""

    def __init__(self, libvirtd: PrivateLibvirtd, ours: Guest, bare: Guest, bench: Bench) -> None:
        self.libvirtd, self.ours, self.bare, self.bench = libvirtd, ours, bare, bench
        self.go, self.called = threading.Event(), threading.Event()

    def run(self, number: int, bus: Bus, delay: float, *, from_the_call: bool) -> tuple[int, int, AttachedDisk]:
        """Return the orphans of Volgate's domain before the repeat, those of the control, and the repeat's answer."""
        self.go.clear()
        self.called.clear()
        volume = self.bench.volume(f"v{number}", format=(Format.RAW, Format.QCOW2)[number % 2])
        wanted = self.bench.plan(self.ours.uuid, volume, bus=bus)
        self.bench.host.close()
        self.bench.host = LocalHost("local", self.libvirtd.uri, disk_hook=lambda xml, _plan: (self.go.set(), xml)[1])
        self.bench.host.find_domain(self.ours.uuid, timeout=10)
        control = raw(self.bench.pool.path.parent / f"bare{number}.raw")
        target, name = ("vdq", "virtio") if bus is Bus.VIRTIO_BLK else ("sdb", "scsi")
        xml = BARE.format(path=control, target=target, bus=name, alias=f"ua-bare-{number}")
        with ThreadPoolExecutor(2) as pool, closing(self.libvirtd.connect()) as connection:
            domain = connection.lookupByUUIDString(self.bare.uuid)
            attaching = pool.submit(self._attach_bare, domain, xml)
            mine = pool.submit(self.bench.attach, wanted)
            if from_the_call:
                self.go.set()
            assert self.called.wait(10)
            time.sleep(delay)
            self.libvirtd.kill9()
            self.libvirtd.start()
            attaching.result(30)
            if error := mine.exception(30):
                assert isinstance(error, VolgateError) and error.retryable, error
        left, control_left = len(stray(self.ours)), len(stray(self.bare))
        return left, control_left, self._repeat(wanted)

    def _attach_bare(self, domain: libvirt.virDomain, xml: str) -> None:
        self.go.wait(10)
        self.called.set()
        try:
            domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError:
            return

    def _repeat(self, wanted) -> AttachedDisk:
        done = self.bench.attach(wanted)
        assert self.ours.wait_disk(wanted.options.serial)
        assert stray(self.ours) == [], "the repeat leaves no orphan"
        time.sleep(0.2)
        assert self.bench.seen(wanted).live and self.bench.seen(wanted).qemu, "and no late event takes it away again"
        assert self.bench.detach(wanted) is DetachOutcome.GONE
        assert stray(self.ours) == [] and self.ours.disks() == []
        return done


@pytest.mark.timeout(count(180, soak=1200))
def test_libvirtd_killed_in_the_middle_of_attach(libvirtd: PrivateLibvirtd, new_guest: Callable[[], Guest], bench: Bench) -> None:
    rounds, random = count(6, soak=48), draw()
    ours, bare = new_guest(), new_guest()
    race = Round(libvirtd, ours, bare, bench)
    met = control = 0
    for number in range(rounds):
        delay = random.uniform(0.001, 0.015)
        left, control_left, done = race.run(number, BUSES[number // 2 % 2], delay, from_the_call=number % 2 == 0)
        assert done.live and done.config
        met, control = met + bool(left), control + bool(control_left)
        if control_left or bare.live_disks():
            bare.reset()
    print(
        f"{rounds} kills: before the repeat {met} orphans of ours and {control} of bare libvirt's; after it none of ours, every repeat OK"
    )
    assert not SOAK or control >= ENOUGH, f"the run does not count: bare libvirt left only {control} orphans"


class Planted:
    """Things put into QEMU behind libvirt's back."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def node(self, name: str, path: str | Path, **more: object) -> None:
        self.guest.qmp("blockdev-add", **{"driver": "file", "node-name": name, "filename": str(path), "read-only": True, **more})

    def layer(self, name: str, on: str, **more: object) -> None:
        self.guest.qmp("blockdev-add", **{"driver": "qcow2", "node-name": name, "file": on, "read-only": True, **more})

    def disk(self, name: str, node: str, unit: int) -> None:
        self.guest.qmp("device_add", driver="scsi-hd", bus="scsi0.0", id=name, drive=node, **{"scsi-id": unit, "share-rw": True})

    def names(self) -> set[str]:
        drives = {drive.device for drive in qmp.drives(self.guest.domain)}
        return drives | {node["node-name"] for node in self.guest.qmp("query-named-block-nodes")}


def test_only_what_is_ours_is_touched(bench: Bench, fresh_guest: Guest) -> None:
    volume, other = bench.volume("vol1"), bench.volume("vol10")
    bench.pool.snapshot(volume, "s")
    path, base = bench.reach(volume).path, bench.reach(volume).chain[0][0]
    foreign = raw(bench.pool.path.parent / "foreign.raw")
    planted = Planted(fresh_guest)
    planted.node("theirs", path)
    planted.node("libvirt-901-storage", foreign)
    planted.node("libvirt-902-storage", bench.reach(other).path)
    planted.node("libvirt-903-storage", foreign)
    planted.disk("virtio-disk9", "libvirt-903-storage", 40)
    strangers = planted.names()
    planted.node("libvirt-911-storage", base)
    planted.layer("libvirt-911-format", "libvirt-911-storage", backing=None)
    planted.node("libvirt-910-storage", path)
    planted.layer("libvirt-910-format", "libvirt-910-storage", backing="libvirt-911-format")
    planted.disk("ua-vg-dead0001", "libvirt-910-format", 41)
    planted.node("libvirt-912-storage", path)
    planted.node("libvirt-913-storage", path)
    ours = planted.names() - strangers
    assert len(ours) == 7 and {drive.node: drive.files for drive in qmp.drives(fresh_guest.domain)}["libvirt-910-format"] == (path, base)

    told = bench.host.repair(fresh_guest.uuid, [path], apply=False, timeout=5)
    assert {finding.alias for finding in told} == ours and not any(finding.repaired for finding in told)
    assert planted.names() == strangers | ours, "only looked"
    told = bench.host.repair(fresh_guest.uuid, [path], apply=True, timeout=5)
    assert {finding.alias for finding in told} == ours and all(finding.repaired for finding in told)
    assert planted.names() == strangers
    assert bench.host.repair(fresh_guest.uuid, [path], apply=True, timeout=5) == []

    wanted = bench.plan(fresh_guest.uuid, volume)
    bench.attach(wanted)
    assert bench.detach(wanted) is DetachOutcome.GONE
    assert planted.names() == strangers


def test_attach_finds_and_detach_ends_an_orphan(bench: Bench, fresh_guest: Guest) -> None:
    wanted = bench.plan(fresh_guest.uuid, bench.volume(format=Format.RAW), bus=Bus.VIRTIO_SCSI)
    planted = Planted(fresh_guest)

    def orphan() -> None:
        planted.node("libvirt-910-storage", wanted.connection.path, **{"read-only": False})
        planted.disk(wanted.alias, "libvirt-910-storage", 41)

    orphan()
    seen = bench.seen(wanted)
    assert seen.qemu and not seen.live and not seen.config
    assert bench.attach(wanted).live and "libvirt-910-storage" not in planted.names()
    assert bench.detach(wanted) is DetachOutcome.GONE
    orphan()
    assert bench.detach(wanted) is DetachOutcome.GONE
    assert planted.names() == set() and fresh_guest.disks() == []


def test_names_that_others_took_are_passed(bench: Bench, fresh_guest: Guest) -> None:
    foreign = raw(bench.pool.path.parent / "foreign.raw")
    planted = Planted(fresh_guest)
    for number in range(1, 6):
        planted.node(f"libvirt-{number}-storage", foreign)
    wanted = bench.plan(fresh_guest.uuid, bench.volume())
    assert bench.attach(wanted).live
    assert bench.detach(wanted) is DetachOutcome.GONE
    assert len(planted.names()) == 5


@pytest.mark.timeout(count(180, soak=1200))
def test_repair_beside_attaches_of_ours_and_of_others_harms_none(bench: Bench, fresh_guest: Guest) -> None:
    """The worst case: somebody else's attach of a file of ours, under an alias that looks like ours."""
    mine = bench.plan(fresh_guest.uuid, bench.volume("mine", format=Format.RAW))
    theirs = bench.reach(bench.volume("theirs", format=Format.RAW)).path
    xml = BARE.format(path=theirs, target="sdb", bus="scsi", alias="ua-vg-theirs")
    over = threading.Event()

    def repair() -> int:
        done = 0
        while not over.is_set():
            told = bench.host.repair(fresh_guest.uuid, [mine.connection.path, theirs], apply=True, timeout=10)
            assert not told, "nothing here is an orphan"
            done += 1
        return done

    def other() -> int:
        done = 0
        with closing(fresh_guest.libvirtd.connect()) as connection:
            domain = connection.lookupByUUIDString(fresh_guest.uuid)
            while not over.is_set():
                domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                assert "ua-vg-theirs" in {drive.device for drive in qmp.drives(domain)}
                domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(repair), pool.submit(other)]
        for _ in range(count(8, soak=100)):
            assert bench.attach(mine).live
            assert bench.detach(mine) is DetachOutcome.GONE
        over.set()
        assert all(future.result(30) > 2 for future in running)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/pool/vol1.raw", "/pool/vol1.raw"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/pool/vol1.qcow2"}}', "/pool/vol1.qcow2"),
        ('json:{"driver":"raw","file":{"driver":"raw","file":{"driver":"file","filename":"/p/a b"}}}', "/p/a b"),
        ('json:{"driver":"null-co"}', 'json:{"driver":"null-co"}'),
        ('json:{"driver":"qcow2","file":"libvirt-1-storage"}', 'json:{"driver":"qcow2","file":"libvirt-1-storage"}'),
        ("json:{broken", "json:{broken"),
    ],
)
def test_files_behind_qemus_names(name: str, file: str) -> None:
    assert qmp.opened(name) == file
