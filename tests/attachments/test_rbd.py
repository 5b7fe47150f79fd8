"""RBD volumes as disks of a real guest, on a real cluster, through a real gateway: what they hold, who holds them, what becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import rbd

from tests.attachments.world import MIB, SECONDS, World, until
from tests.edge.wire import refused
from tests.hypervisor.rbd_rig import rotate
from tests.labs.ceph import CephCluster
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from volgate.v1 import attachment_pb2, operation_pb2, snapshot_pb2, volume_pb2

POOL, CLIENT = "guests", "guests"
CAPS = f"profile rbd pool={POOL}"
RAW = volume_pb2.VOLUME_FORMAT_RAW
SHARED = attachment_pb2.ACCESS_MODE_SHARED
PATIENT = 60.0
PATTERN = "yes {word} | dd of={device} bs=1M count=4 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null && sync"


class Place(World):
    """A gateway with one pool of RBD images, and the cluster behind it."""

    def __init__(self, folder: Path, ceph: CephCluster, libvirtd: PrivateLibvirtd, key: Path) -> None:
        self.ceph, self.libvirtd, self.key = ceph, libvirtd, key
        facts = {"monitors": [*ceph.monitors, ceph.monitors[0].replace("127.0.0.1", "localhost")], "operation_seconds": 3.0}
        facts |= {"user": CLIENT, "key": f"file:{key}", "pool": POOL}
        table = '[pools.p]\nkind = "ceph-rbd"\n' + "".join(f"{name} = {json.dumps(value)}\n" for name, value in facts.items())
        super().__init__(folder, folder, libvirtd.uri, table)

    def made(self, name: str, **other: Any) -> volume_pb2.Volume:
        return self.create(name, form=RAW, **other)

    def clone(self, name: str, source: str) -> None:
        request = volume_pb2.CreateVolumeRequest(pool="pools/p", volume_id=name, source=source)
        self.wire.volumes.CreateVolume(request, timeout=SECONDS)

    def expand(self, name: str, size: int) -> None:
        self.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=full(name), size_bytes=size), timeout=SECONDS)

    def delete(self, name: str) -> None:
        self.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=full(name)), timeout=SECONDS)

    def unfinished(self) -> list[operation_pb2.Operation]:
        request = operation_pb2.ListOperationsRequest(unfinished_only=True)
        return list(self.wire.operations.ListOperations(request, timeout=SECONDS).operations)

    def paths(self, name: str) -> tuple[dict[str, list[attachment_pb2.Path]], str]:
        answer = self.wire.attachments.ListPaths(attachment_pb2.ListPathsRequest(name=name), timeout=SECONDS)
        found: dict[str, list[attachment_pb2.Path]] = {}
        for path in answer.paths:
            found.setdefault(path.transport, []).append(path)
        return found, attachment_pb2.Redundancy.Name(answer.redundancy).removeprefix("REDUNDANCY_")

    @contextlib.contextmanager
    def image(self, volume: volume_pb2.Volume, *, read_only: bool = True) -> Iterator[rbd.Image]:
        with self.ceph.ioctx(pool=POOL) as ioctx:
            name = next(name for name in rbd.RBD().list(ioctx) if name == f"{volume.name.rpartition('/')[2]}.{volume.uid[:8]}")
            with rbd.Image(ioctx, name, read_only=read_only) as image:
                yield image

    def watchers(self, volume: volume_pb2.Volume) -> list[str]:
        with self.image(volume) as image:
            return [one["addr"] for one in image.watchers_list()]


def full(name: str) -> str:
    return f"pools/p/volumes/{name}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ceph: CephCluster, libvirtd: PrivateLibvirtd) -> Iterator[Place]:
    """One gateway for the module; each test has volumes of its own."""
    ceph.command("osd pool create", pool=POOL, pg_num=8, pgp_num=8, pool_type="replicated", size=1)
    ceph.command("osd pool application enable", pool=POOL, app="rbd")
    ceph.command("config set", who="osd", name="osd_client_watch_timeout", value="5")  # a dead QEMU is forgotten sooner than after 30 s
    key = ceph.new_client(CLIENT, mon="profile rbd", osd=CAPS, mgr=CAPS)
    made = Place(tmp_path_factory.mktemp("rbd"), ceph, libvirtd, key)
    yield made
    made.close()


def begins(guest: Guest, device: str) -> str:
    """The first word of a disk, past the guest's cache."""
    return guest.run(f"dd if={device} bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1")


def test_a_pattern_comes_back_by_a_revert_and_lives_in_a_clone(place: Place, guest: Guest) -> None:
    volume = place.made("story")
    first = place.attach(guest, full("story"), serial="story").attachment
    disk = guest.wait_disk("story")
    guest.run(PATTERN.format(word="before", device=disk.device))
    asked = snapshot_pb2.CreateSnapshotRequest(volume=full("story"), snapshot_id="s1")
    cut = place.wire.snapshots.CreateSnapshot(asked, timeout=SECONDS).snapshot
    assert place.wire.snapshots.CreateSnapshot(asked, timeout=SECONDS).snapshot == cut
    guest.run(PATTERN.format(word="after", device=disk.device))
    place.clone("copy", f"{full('story')}/snapshots/s1")
    second = place.attach(guest, full("copy"), serial="copy").attachment
    assert begins(guest, guest.wait_disk("copy").device) == "before" and begins(guest, disk.device) == "after"
    place.expand("story", 96 * MIB)
    until(lambda: guest.wait_disk("story").size == 96 * MIB)
    for made in (first, second):
        place.detach(made.name)
    assert place.watchers(volume) == [] and guest.disks() == []
    revert = volume_pb2.RevertVolumeRequest(name=full("story"), snapshot=f"{full('story')}/snapshots/s1", request_id="story-revert")
    place.wire.volumes.RevertVolume(revert, timeout=SECONDS)
    third = place.attach(guest, full("story"), serial="again").attachment
    again = guest.wait_disk("again")
    assert begins(guest, again.device) == "before" and again.size == 64 * MIB
    place.detach(third.name)
    assert guest.connection.listAllSecrets() == []


def test_a_busy_image_is_refused_naming_who_has_it_open(place: Place, guest: Guest) -> None:
    volume = place.made("busy")
    with place.image(volume, read_only=False):
        (address,) = place.watchers(volume)
        said = refused(place.wire.attachments.AttachVolume, attach_request(guest, "busy"), timeout=SECONDS)
        assert (said.code, said.reason) == ("FAILED_PRECONDITION", "HELD_ON_STORAGE") and address in said.message
        assert guest.live_disks() == []
    made = place.attach(guest, full("busy"), serial="busy").attachment
    assert refused(place.wire.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=full("busy")), timeout=SECONDS).reason == "IN_USE"
    place.detach(made.name)
    place.delete("busy")


def attach_request(guest: Guest, name: str, **options: Any) -> attachment_pb2.AttachVolumeRequest:
    return attachment_pb2.AttachVolumeRequest(volume=full(name), domain=guest.name, options=attachment_pb2.DiskOptions(**options))


def test_the_image_of_a_guest_that_died_is_attached_elsewhere_when_ceph_has_forgotten_it(
    place: Place, guest: Guest, fresh_guest: Guest
) -> None:
    volume = place.made("heir")
    place.attach(fresh_guest, full("heir"), serial="heir")
    disk = fresh_guest.wait_disk("heir")
    fresh_guest.run(PATTERN.format(word="legacy", device=disk.device))
    os.kill(fresh_guest.qemu_pid(), signal.SIGKILL)
    until(lambda: not fresh_guest.domain.isActive())
    assert len(place.watchers(volume)) == 1, "Ceph does not know yet"
    fresh_guest.domain.undefine()
    made = place.attach(guest, full("heir"), serial="heir").attachment
    assert len(place.watchers(volume)) == 1 and begins(guest, guest.wait_disk("heir").device) == "legacy"
    place.detach(made.name)


def test_paths_name_monitors_groups_osds_and_the_guest(place: Place, guest: Guest) -> None:
    place.made("ways")
    made = place.attach(guest, full("ways"), serial="ways").attachment
    found, whole = place.paths(made.name)
    assert whole == "SINGLE" and {"monitor", "pool", "osd", "watcher", "libvirt"} <= set(found)
    assert {path.initiator for path in found["monitor"]} == {"gateway", "local"}, "what the gateway knows, and what the host reaches"
    assert found["monitor"][0].device == "mon.a" and found["monitor"][0].facts["in_quorum"] == "yes"
    assert 1 <= int(found["pool"][0].facts["groups"]) <= 8 and found["pool"][0].facts["redundant"] == "no"
    assert "rbd_header." in found["osd"][0].facts["objects"] and found["osd"][0].target.startswith("osd.0 at 127.0.0.1")
    (watcher,) = found["watcher"]
    assert watcher.facts["locks"] in ("yes", "no") and watcher.initiator.startswith("127.0.0.1:")
    place.detach(made.name)
    assert "watcher" not in place.paths(full("ways"))[0]


def test_io_waits_for_an_osd_that_hangs_and_goes_on_and_paths_say_so(place: Place, guest: Guest) -> None:
    place.made("patient")
    made = place.attach(guest, full("patient"), serial="patient").attachment
    disk = guest.wait_disk("patient")
    ended = threading.Event()

    def write() -> None:
        guest.run(PATTERN.format(word="waited", device=disk.device), timeout=PATIENT)
        ended.set()

    with hanging(place.ceph, "osd.0"):
        writing = threading.Thread(target=write)
        writing.start()
        assert place.paths(made.name)[1] == "DOWN"
        assert not ended.is_set(), "nothing is lost, and nothing has failed: the guest waits"
    writing.join(PATIENT)
    assert ended.is_set() and begins(guest, disk.device) == "waited"
    until(lambda: place.paths(made.name)[1] == "SINGLE", PATIENT)
    place.detach(made.name)


@contextlib.contextmanager
def hanging(ceph: CephCluster, name: str) -> Iterator[None]:
    ceph.freeze(name)
    try:
        yield
    finally:
        ceph.thaw(name)


def test_a_gateway_killed_in_the_middle_of_an_attach_finishes_it(place: Place, guest: Guest, libvirtd: PrivateLibvirtd) -> None:
    volume = place.made("torn")
    libvirtd.freeze()
    try:
        calling = in_the_background(
            lambda: place.wire.attachments.AttachVolume(attach_request(guest, "torn", serial="torn"), timeout=SECONDS)
        )
        until(lambda: bool(place.unfinished()))
        place.server.kill9()
    finally:
        libvirtd.thaw()
    calling.join(PATIENT)
    place.again()
    made = place.attach(guest, full("torn"), serial="torn").attachment
    place.idle()
    assert len(guest.live_disks()) == 1 and len(place.watchers(volume)) == 1 and guest.wait_disk("torn")
    guest.pause()
    place.detach(made.name, wait=1)
    assert place.state(made.name) == "DETACHING"
    place.again()
    guest.resume()
    until(lambda: place.watchers(volume) == [] and not place.attachments(), PATIENT)
    place.idle()
    assert guest.disks() == [] and guest.connection.listAllSecrets() == []


def test_a_quiesced_snapshot_has_what_the_guest_had_not_written_yet(place: Place, guest: Guest) -> None:
    place.made("still")
    asked = snapshot_pb2.CreateSnapshotRequest(volume=full("still"), snapshot_id="s", quiesce=True)
    assert "not attached" in refused(place.wire.snapshots.CreateSnapshot, asked, timeout=SECONDS).message
    made = place.attach(guest, full("still"), serial="still").attachment
    disk = guest.wait_disk("still").device
    guest.run(f"mke2fs {disk} >/dev/null 2>&1 && mount {disk} /mnt && echo unwritten >/mnt/file")
    cut = place.wire.snapshots.CreateSnapshot(asked, timeout=SECONDS).snapshot
    assert cut.quiesced and guest.agent("guest-fsfreeze-status") == "thawed"
    assert place.wire.snapshots.CreateSnapshot(asked, timeout=SECONDS).snapshot == cut
    guest.run("umount /mnt")
    place.clone("copy-of-still", cut.name)
    copy = place.attach(guest, full("copy-of-still"), serial="copy").attachment
    assert guest.run(f"mount -o ro {guest.wait_disk('copy').device} /mnt && cat /mnt/file; umount /mnt") == "unwritten"
    for one in (made, copy):
        place.detach(one.name)


def test_a_guest_that_a_killed_gateway_left_frozen_goes_on_and_is_frozen_for_the_snapshot_again(place: Place, guest: Guest) -> None:
    place.made("cold")
    made = place.attach(guest, full("cold"), serial="cold").attachment
    disk = guest.wait_disk("cold").device
    guest.run(f"mke2fs {disk} >/dev/null 2>&1 && mount {disk} /mnt")
    asked = snapshot_pb2.CreateSnapshotRequest(volume=full("cold"), snapshot_id="s", quiesce=True)
    with hanging(place.ceph, "mon.a"):  # which gives every snapshot its number; the guest's own requests go on
        calling = in_the_background(lambda: place.wire.snapshots.CreateSnapshot(asked, timeout=SECONDS))
        until(lambda: guest.agent("guest-fsfreeze-status") == "frozen")
        place.server.kill9()
    calling.join(PATIENT)
    assert guest.agent("guest-fsfreeze-status") == "frozen"
    place.again()
    place.idle()
    assert place.wire.snapshots.CreateSnapshot(asked, timeout=SECONDS).snapshot.quiesced
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    guest.run("umount /mnt")
    place.detach(made.name)


def in_the_background(call: Callable[[], object]) -> threading.Thread:
    """Make a call whose answer is lost."""

    def made() -> None:
        with contextlib.suppress(grpc.RpcError):
            call()

    thread = threading.Thread(target=made)
    thread.start()
    return thread


def test_a_detach_waits_until_nobody_has_the_image_open(place: Place, guest: Guest) -> None:
    volume = place.made("asked")
    made = place.attach(guest, full("asked"), serial="asked").attachment
    with place.image(volume, read_only=False):
        place.detach(made.name, wait=1)
        assert place.state(made.name) == "DETACHING" and guest.live_disks() == [], "the guest has let go, somebody else has not"
    until(lambda: not place.attachments(), PATIENT)
    place.idle()


def test_shared_writers_and_readers_are_told_apart_from_strangers(place: Place, guest: Guest, fresh_guest: Guest) -> None:
    volume = place.made("shared")
    both = [place.attach(one, full("shared"), serial="shared", access=SHARED).attachment for one in (guest, fresh_guest)]
    assert len(place.watchers(volume)) == 2 and guest.wait_disk("shared") and fresh_guest.wait_disk("shared")
    for made in both:
        place.detach(made.name)
    assert place.watchers(volume) == []
    made = place.attach(guest, full("shared"), serial="reader", access=attachment_pb2.ACCESS_MODE_READ_ONLY).attachment
    assert guest.wait_disk("reader").read_only and len(place.watchers(volume)) == 1, "who only reads has it open too"
    place.detach(made.name)


def test_a_key_is_changed_under_guests_and_gateway(place: Place, guest: Guest) -> None:
    place.made("rotated")
    made = place.attach(guest, full("rotated"), serial="rotated").attachment
    disk = guest.wait_disk("rotated")
    rotate(place.ceph, CLIENT, place.key)
    guest.run(PATTERN.format(word="onward", device=disk.device))
    place.made("later")
    later = place.attach(guest, full("later"), serial="later").attachment
    assert guest.wait_disk("later") and begins(guest, disk.device) == "onward"
    for one in (made, later):
        place.detach(one.name)


def test_a_libvirtd_that_starts_anew_has_the_key_again_before_the_guest_does(
    place: Place, fresh_guest: Guest, libvirtd: PrivateLibvirtd
) -> None:
    place.made("reboot")
    made = place.attach(fresh_guest, full("reboot"), serial="reboot").attachment
    fresh_guest.wait_disk("reboot")
    libvirtd.kill9()
    libvirtd.start()
    until(lambda: [one.usageID() for one in fresh_guest.connection.listAllSecrets()] != [], PATIENT)
    fresh_guest.destroy()
    fresh_guest.start(boot=True)
    assert fresh_guest.wait_disk("reboot")
    place.detach(made.name)


def test_a_gateway_that_lost_its_database_knows_the_attachment_again(place: Place, guest: Guest) -> None:
    place.made("kept")
    made = place.attach(guest, full("kept"), serial="kept").attachment
    place.server.kill9()
    for path in place.server.state.glob("volgate.db*"):
        path.unlink()
    place.again()
    until(lambda: [one.name for one in place.attachments()] == [made.name], PATIENT)
    (found,) = place.attachments()
    assert (found.volume, found.target, found.options) == (made.volume, made.target, made.options)
    place.detach(made.name)
    assert guest.disks() == []


def test_no_key_is_told_anywhere(place: Place, guest: Guest) -> None:
    place.made("secret")
    made = place.attach(guest, full("secret"), serial="secret").attachment
    place.paths(made.name)
    key = place.key.read_text().encode()
    state = place.server.state
    seen = [path for path in state.rglob("*") if path.is_file() and key in path.read_bytes()]
    assert not seen and place.key.is_file() and key.decode() not in str(made)
    assert key not in Path(f"/proc/{place.server.process.pid}/cmdline").read_bytes()
    place.detach(made.name)
