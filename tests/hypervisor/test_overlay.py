"""Snapshots under a guest: a new layer on top while it writes, quiesced or not, with libvirtd dying meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import libvirt
import pytest

from tests.hypervisor.rig import BUSES, SECONDS, Bench
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.plugins.directory_rig import MIB, mounted
from tests.soaking import count, draw
from volgate.backend import SnapshotSpec, VolumeId
from volgate.connection import LocalFile
from volgate.errors import InDoubt, InUse, Precondition, Unreachable, VolgateError
from volgate.hosts import local
from volgate.hosts.interface import AttachPlan, DetachOutcome
from volgate.hypervisor import block_jobs, marks, overlay, qmp
from volgate.model import Bus, Format

WRITER = """cat >/tmp/writer <<'END'
n=0
while [ ! -e /tmp/stop ]; do
  printf '%08d' $n | dd of={0} bs=8 count=1 conv=fsync 2>/dev/null || echo failed >/tmp/failed
  n=$((n+1)); echo $n >/tmp/written
done
END
rm -f /tmp/stop /tmp/failed; setsid sh /tmp/writer >/dev/null 2>&1 </dev/null &"""


def snapshot(bench: Bench, wanted: AttachPlan, volume: VolumeId, name: str, *, quiesce: bool = False) -> tuple[str, str]:
    """What the operation does; returns the new layer's path and the snapshot's uid."""
    spec = SnapshotSpec(name, str(uuid.uuid4()), quiesced=quiesce)
    overlay = bench.pool.backend.prepare_overlay(volume, spec)
    for _ in range(2):
        done = bench.host.switch_overlay(wanted.domain, wanted.alias, overlay.top, overlay.base, quiesce=quiesce, timeout=SECONDS)
        assert done == quiesce, "and its repeat"
    bench.pool.backend.finish_overlay(volume, spec)
    return overlay.top.path, spec.uid


@pytest.mark.parametrize("bus", BUSES)
def test_guest_writes_on_while_layers_are_put_on_top(bench: Bench, guest: Guest, bus: Bus) -> None:
    volume = bench.volume()
    wanted = bench.plan(guest.uuid, volume, bus=bus)
    bench.attach(wanted)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk
    guest.run(f"printf before >/tmp/b; dd if=/tmp/b of={disk.device} bs=4096 seek=256 conv=sync,fsync 2>/dev/null")
    guest.run(WRITER.format(disk.device))
    tops = [snapshot(bench, wanted, volume, f"s{n}", quiesce=n == 1) for n in range(3)]
    before = int(guest.run("cat /tmp/written"))
    bench.eventually(lambda: int(guest.run("cat /tmp/written")) > before)
    guest.run("touch /tmp/stop; sleep 0.5; test ! -e /tmp/failed")
    guest.run(f"printf after >/tmp/b; dd if=/tmp/b of={disk.device} bs=4096 seek=256 conv=sync,fsync 2>/dev/null")
    last = guest.run(f"head -c 8 {disk.device}")
    top = tops[-1][0]
    seen = bench.host.presence(wanted.domain, wanted.alias, top, timeout=SECONDS)
    assert seen.live and seen.config and seen.source == top
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        assert guest.domain.XMLDesc(flags).count(top) == 1 and guest.domain.XMLDesc(flags).count(wanted.connection.path) == (
            flags == 0 or 1
        )
    with pytest.raises(InUse) as refused:
        bench.host.detach(wanted.domain, wanted.alias, wanted.connection.path, timeout=SECONDS)
    assert refused.value.reason == "IDENTITY_MISMATCH", "the record must say what the guest has now"
    assert bench.host.detach(wanted.domain, wanted.alias, top, timeout=SECONDS) is DetachOutcome.GONE
    bench.pool.checked()
    image = bench.pool.backend.image(volume, "")
    data = bench.bytes_of(image, 257 * 4096)
    assert data[:8].decode() == last and data[256 * 4096 :].startswith(b"after")
    first = bench.bytes_of(bench.pool.backend.image(volume, tops[0][1]), 257 * 4096)
    assert first[256 * 4096 :].startswith(b"before") and first[:8] <= data[:8]


def test_domain_that_is_off_gets_the_layer_in_its_configuration(bench: Bench, fresh_guest: Guest) -> None:
    fresh_guest.destroy()
    volume = bench.volume()
    wanted = bench.plan(fresh_guest.uuid, volume)
    bench.attach(wanted)
    with pytest.raises(Precondition, match="does not run") as refused:
        bench.host.switch_overlay(wanted.domain, wanted.alias, wanted.connection, "", quiesce=True, timeout=SECONDS)
    assert refused.value.reason == "NO_AGENT"
    top, _ = snapshot(bench, wanted, volume, "s")
    fresh_guest.start(boot=True)
    disk = fresh_guest.wait_disk(wanted.options.serial)
    assert disk and bench.host.presence(wanted.domain, wanted.alias, top, timeout=SECONDS).source == top
    fresh_guest.run(f"dd if=/dev/zero of={disk.device} bs=4096 count=1 oflag=direct 2>/dev/null")
    assert bench.host.detach(wanted.domain, wanted.alias, top, timeout=SECONDS) is DetachOutcome.GONE
    bench.pool.checked()


@pytest.mark.parametrize("agent", ["deaf", "dead"])
def test_quiesce_without_an_agent_changes_nothing(bench: Bench, fresh_guest: Guest, agent: str) -> None:
    volume = bench.volume()
    wanted = bench.plan(fresh_guest.uuid, volume)
    bench.attach(wanted)
    if agent == "deaf":
        fresh_guest.pause()
    else:
        fresh_guest.run("(sleep 0.2; killall -9 qemu-ga) >/dev/null 2>&1 </dev/null &")
        bench.eventually(lambda: "state='connected'" not in fresh_guest.domain.XMLDesc())
    with pytest.raises(Precondition, match="agent") as refused:
        snapshot(bench, wanted, volume, "s", quiesce=True)
    assert refused.value.reason == "NO_AGENT"
    assert bench.seen(wanted).source == wanted.connection.path


def test_guest_is_thawed_although_the_snapshot_hangs(bench: Bench, fresh_guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer's emptiness is looked at while the guest is frozen: that look hangs here."""
    monkeypatch.setattr(block_jobs, "_FREEZE_SECONDS", 1.0)
    volume = bench.volume()
    wanted = bench.plan(fresh_guest.uuid, volume)
    bench.attach(wanted)
    disk = fresh_guest.wait_disk(wanted.options.serial)
    assert disk
    fresh_guest.run(f"mke2fs {disk.device} >/dev/null && mount {disk.device} /mnt")
    going_on = threading.Event()

    def hang(_file: LocalFile) -> bool:
        assert going_on.wait(20)
        return True

    monkeypatch.setattr(local, "unwritten", hang)
    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(snapshot, bench, wanted, volume, "s", quiesce=True)
        bench.eventually(lambda: fresh_guest.agent("guest-fsfreeze-status") == "frozen")
        bench.eventually(lambda: fresh_guest.agent("guest-fsfreeze-status") == "thawed", 5)
        going_on.set()
        assert cutting.result(20)
    fresh_guest.run("umount /mnt")


def test_switch_refuses_a_disk_on_neither_layer(bench: Bench, guest: Guest) -> None:
    volume, other = bench.volume("a"), bench.volume("b")
    wanted = bench.plan(guest.uuid, volume)
    bench.attach(wanted)
    with pytest.raises(InUse) as refused:
        bench.host.switch_overlay(wanted.domain, wanted.alias, bench.reach(other), "/elsewhere.qcow2", quiesce=False, timeout=SECONDS)
    assert refused.value.reason == "IDENTITY_MISMATCH"
    assert bench.seen(wanted).source == wanted.connection.path and bench.detach(wanted) is DetachOutcome.GONE


class Cut:
    """A snapshot of an attached volume under a libvirtd that is killed."""

    def __init__(self, bench: Bench, guest: Guest, name: str, bus: Bus) -> None:
        self.bench, self.guest = bench, guest
        self.volume = bench.volume(name)
        self.wanted = bench.plan(guest.uuid, self.volume, bus=bus)
        bench.attach(self.wanted)
        disk = guest.wait_disk(self.wanted.options.serial)
        assert disk
        self.device = disk.device
        self.begin()

    def begin(self) -> None:
        self.spec = SnapshotSpec("s", str(uuid.uuid4()))
        self.overlay = self.bench.pool.backend.prepare_overlay(self.volume, self.spec)

    def write(self, word: str) -> None:
        """Write through the device to the layer that QEMU has on top, and read it back past the guest's own memory."""
        script = """[ -b '{0}' ] && yes {1} | dd of='{0}' bs=4096 count=1 iflag=fullblock conv=fsync 2>/dev/null &&
            dd if='{0}' bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1"""
        assert self.guest.run(script.format(self.device, word)) == word

    def switch(self) -> bool:
        top, base = self.overlay.top, self.overlay.base
        return self.bench.host.switch_overlay(self.guest.uuid, self.wanted.alias, top, base, quiesce=False, timeout=SECONDS)

    def repeat(self) -> bool:
        """Switch again as the operation does; True if the guest had written to the new layer, which is merged back and made anew."""
        try:
            self.switch()
        except Unreachable as undone:
            assert "merged back" in undone.message
            assert self.bench.seen(self.wanted).source == self.overlay.base, "only now may the layer be removed"
            self.bench.pool.backend.abandon_overlay(self.volume, self.spec.uid)
            self.begin()
            self.switch()
            return True
        return False

    def check(self) -> None:
        self.write("after")
        self.bench.pool.backend.finish_overlay(self.volume, self.spec)
        top, host = self.overlay.top.path, self.bench.host
        seen = host.presence(self.guest.uuid, self.wanted.alias, top, timeout=SECONDS)
        assert seen.live and seen.config and seen.source == top
        assert host.detach(self.guest.uuid, self.wanted.alias, top, timeout=SECONDS) is DetachOutcome.GONE
        self.no_node_left()
        self.bench.pool.checked()
        assert self.bench.bytes_of(self.bench.pool.backend.image(self.volume, ""), 6) == b"after\n"
        assert self.bench.bytes_of(self.bench.pool.backend.image(self.volume, self.spec.uid), 7) == b"before\n"

    def no_node_left(self) -> None:
        names = [node["node-name"] for node in self.guest.qmp("query-named-block-nodes")]
        assert not [name for name in names if name.startswith("libvirt-")]

    def by_qemu_alone(self) -> None:
        """What libvirtd does up to the instant before it would write it down."""
        found = next(b for b in self.guest.qmp("query-block") if self.wanted.alias in b["qdev"])
        self.guest.qmp("blockdev-add", **{"driver": "file", "node-name": "libvirt-99-storage", "filename": self.overlay.top.path})
        self.guest.qmp(
            "blockdev-add", **{"driver": "qcow2", "node-name": "libvirt-99-format", "file": "libvirt-99-storage", "backing": None}
        )
        self.guest.qmp("blockdev-snapshot", node=found["inserted"]["node-name"], overlay="libvirt-99-format")


@pytest.mark.timeout(count(180, soak=1200))
def test_libvirtd_killed_in_the_middle_of_a_switch(bench: Bench, new_guest: Callable[[], Guest], libvirtd: PrivateLibvirtd) -> None:
    guest, random = new_guest(), draw()
    met = merged = 0
    for number in range(count(4, soak=40)):
        cut = Cut(bench, guest, f"v{number}", BUSES[number % 2])
        cut.write("before")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(cut.switch)
            bench.pause(random.uniform(0.001, 0.025))
            libvirtd.kill9()
            libvirtd.start()
            error = running.exception(60)
        assert error is None or (isinstance(error, VolgateError) and error.retryable), error
        met += error is not None
        if number % 4 < 2:
            cut.write("before")  # whatever layer it goes to, it is before the snapshot that counts
        merged += cut.repeat() if error else 0
        cut.check()
    print(f"{met} kills met a switch, {merged} of them after QEMU had switched")


def test_layer_that_libvirt_does_not_know_of_is_merged_back(bench: Bench, fresh_guest: Guest) -> None:
    cut = Cut(bench, fresh_guest, "a", Bus.VIRTIO_BLK)
    cut.write("lost?")
    cut.by_qemu_alone()
    seen = bench.seen(cut.wanted)
    assert seen.source == cut.overlay.top.path, "what QEMU has counts, or the layer would be removed under the guest"
    cut.write("before")
    assert cut.repeat()
    cut.check()


@pytest.mark.parametrize("written", [True, False])
def test_detach_and_resize_merge_back_first(bench: Bench, fresh_guest: Guest, written: bool) -> None:
    cut = Cut(bench, fresh_guest, "a", Bus.VIRTIO_SCSI)
    for size in (16 * MIB, 24 * MIB):
        cut.by_qemu_alone()
        if written:
            cut.write("kept")
        assert bench.host.resize(fresh_guest.uuid, cut.wanted.alias, size, timeout=SECONDS) == size
        bench.pool.backend.abandon_overlay(cut.volume, cut.spec.uid)
        cut.begin()
    cut.write("kept")
    cut.by_qemu_alone()
    assert bench.detach(cut.wanted) is DetachOutcome.GONE
    cut.no_node_left()
    bench.pool.backend.abandon_overlay(cut.volume, cut.spec.uid)
    bench.pool.checked()
    assert bench.bytes_of(bench.reach(cut.volume), 5) == b"kept\n"


@pytest.mark.parametrize("off", [True, False])
def test_guest_that_restarts_amid_a_switch_finds_what_it_wrote(bench: Bench, fresh_guest: Guest, off: bool) -> None:
    """The configuration must name the new layer before QEMU writes to it, or the guest starts on the old one."""
    cut = Cut(bench, fresh_guest, "a", Bus.VIRTIO_BLK)
    cut.write("before")

    def dies(_domain: libvirt.virDomain, _xml: str, _flags: int) -> None:
        cut.by_qemu_alone()
        raise InDoubt("libvirt went away")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InDoubt):
        patch.setattr(libvirt.virDomain, "snapshotCreateXML", dies)
        cut.switch()
    cut.write("written")
    fresh_guest.destroy()
    assert bench.seen(cut.wanted).source == cut.overlay.top.path, "in use: it may not be removed"
    if off:
        cut.switch()
    fresh_guest.start(boot=True)
    disk = fresh_guest.wait_disk(cut.wanted.options.serial)
    assert disk and fresh_guest.run(f"head -n 1 {disk.device}") == "written"
    cut.device = disk.device
    cut.switch()
    cut.check()


@pytest.mark.parametrize("point", ["held", "configured", "merged"])
@pytest.mark.parametrize("restarted", [True, False])
def test_guest_that_restarts_amid_a_merge_finds_what_it_wrote(bench: Bench, fresh_guest: Guest, point: str, restarted: bool) -> None:
    """We die while the layer is merged back; the guest stands still until the next attempt, and may start anew from either layer."""
    cut = Cut(bench, fresh_guest, "a", Bus.VIRTIO_BLK)
    cut.write("before")
    top = overlay.FileSource(cut.overlay.top.path, Format.QCOW2, ((cut.overlay.base, Format.QCOW2),))
    overlay.configure(fresh_guest.domain, cut.wanted.alias, top)  # as libvirtd's death leaves it
    cut.by_qemu_alone()
    cut.write("written")
    command, follow = qmp.command, overlay._follow

    def dying(domain: libvirt.virDomain, name: str, **arguments: object) -> object:
        if name != "job-complete" or point == "held":
            return command(domain, name, **arguments)
        if point == "merged":
            command(domain, name, **arguments)
            bench.eventually(lambda: command(domain, "query-jobs")[0]["status"] == "concluded")
        raise InDoubt("we died")

    def dying_too(domain: libvirt.virDomain, alias: str) -> None:
        if point == "held":
            raise InDoubt("we died")
        follow(domain, alias)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InDoubt, match="we died"):
        patch.setattr(qmp, "command", dying)
        patch.setattr(overlay, "_follow", dying_too)
        patch.setattr(marks, "let_go", lambda _domain: None)
        cut.switch()
    assert fresh_guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    if not restarted:
        assert bench.detach(cut.wanted) is DetachOutcome.GONE
        assert fresh_guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING and marks.HELD not in fresh_guest.domain.XMLDesc()
        bench.pool.backend.abandon_overlay(cut.volume, cut.spec.uid)
        assert bench.bytes_of(bench.reach(cut.volume), 8) == b"written\n"
        return
    fresh_guest.destroy()
    fresh_guest.start(boot=True)
    disk = fresh_guest.wait_disk(cut.wanted.options.serial)
    assert disk and fresh_guest.run(f"head -n 1 {disk.device}") == "written"
    cut.device = disk.device
    cut.write("before")
    with pytest.raises(Unreachable) as undone:
        cut.switch()
    if point == "held":  # it came back on the new layer, of which the old one holds a part
        assert undone.value.reason == "OVERLAY_TORN"
        bench.pool.backend.finish_overlay(cut.volume, cut.spec)
        bench.pool.backend.delete_snapshot(cut.volume, cut.spec.uid)
    else:  # it came back on the old layer, and the new one is written
        bench.pool.backend.abandon_overlay(cut.volume, cut.spec.uid)
    cut.begin()
    cut.switch()
    assert "urn:volgate" not in fresh_guest.domain.XMLDesc() + fresh_guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    cut.check()


def test_a_guest_that_others_paused_stays_so(bench: Bench, fresh_guest: Guest) -> None:
    fresh_guest.pause()
    with marks.held(fresh_guest.domain):
        assert "volgate" not in fresh_guest.domain.XMLDesc()
    marks.let_go(fresh_guest.domain)
    assert fresh_guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def test_another_disk_that_goes_meanwhile_does_not_matter(bench: Bench, fresh_guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk but one is named as left out of a snapshot: libvirt takes offence at one that a guest has just let go of."""
    cut, other = Cut(bench, fresh_guest, "a", Bus.VIRTIO_SCSI), bench.plan(fresh_guest.uuid, bench.volume("b"), bus=Bus.VIRTIO_SCSI)
    bench.attach(other)
    fresh_guest.wait_disk(other.options.serial)
    write, went = overlay._snapshot_xml, list[bool]()

    def listed(domain: libvirt.virDomain, device: overlay.Device, top: overlay.FileSource) -> str:
        xml = write(domain, device, top)
        if not went:
            went.append(True)
            domain.detachDeviceAlias(other.alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            bench.eventually(lambda: other.alias not in domain.XMLDesc())
        return xml

    cut.write("before")
    monkeypatch.setattr(overlay, "_snapshot_xml", listed)
    cut.switch()
    assert went and bench.detach(other) is DetachOutcome.GONE
    cut.check()


def test_switch_that_never_began_leaves_the_configuration_as_it_was(bench: Bench, fresh_guest: Guest) -> None:
    cut = Cut(bench, fresh_guest, "a", Bus.VIRTIO_SCSI)
    top, base = cut.overlay.top.path, cut.overlay.base

    def named(path: str) -> bool:
        return path in fresh_guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    for error in (Precondition("QEMU refuses"), InDoubt("libvirt went away")):

        def refuses(*_: object, error: VolgateError = error) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(libvirt.virDomain, "snapshotCreateXML", refuses)
            cut.switch()
        assert named(base) and named(top) == isinstance(error, InDoubt)
    of_top = bench.host.presence(fresh_guest.uuid, cut.wanted.alias, top, timeout=SECONDS)
    assert of_top.source == top, "the layer is in use until the configuration lets go of it"
    assert bench.detach(cut.wanted) is DetachOutcome.GONE
    assert not named(base) and not named(top)


def test_merge_that_fails_leaves_the_guest_on_the_layer_that_holds_its_data(tmp_path: Path) -> None:
    """The file system is full: a detach and a snapshot say so at once, lose nothing, and succeed when there is room."""
    with mounted(tmp_path / "fs.img", "ext4", 64 * MIB, tmp_path / "mnt") as folder, PrivateLibvirtd() as daemon:
        (folder / "pool").mkdir()
        bench = Bench(daemon, folder / "pool")
        with closing(bench.host):
            cut = Cut(bench, Guest(daemon), "a", Bus.VIRTIO_BLK)
            cut.by_qemu_alone()
            cut.write("before")
            with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            for refused in (cut.switch, lambda: bench.detach(cut.wanted)):
                with pytest.raises(Precondition, match="No space left") as failed:
                    refused()
                assert failed.value.reason == "QEMU_REFUSED" and bench.seen(cut.wanted).source == cut.overlay.top.path
            cut.write("before")
            (folder / "filler").unlink()
            assert cut.repeat()
            cut.check()
            cut.guest.disconnect()
