"""Attachments through what happens to gateways, guests and hosts; data is checked inside the guest."""

from __future__ import annotations

import os
import signal

import libvirt
import pytest

from tests.attachments.world import MIB, VOLUME, until
from tests.edge.wire import refused
from volgate.v1 import attachment_pb2, volume_pb2

RAW = volume_pb2.VOLUME_FORMAT_RAW


def write(guest, text, serial="data"):
    guest.run(f"printf %s {text} | dd of={guest.wait_disk(serial).device} conv=notrunc,fsync 2>/dev/null")


def read(guest, length, serial="data"):
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    return guest.run(f"dd if={guest.wait_disk(serial).device} bs=1 count={length} 2>/dev/null")


def test_an_attachment_outlives_the_gateway(world, fresh_guest):
    world.create()
    name = world.attach(fresh_guest).attachment.name
    write(fresh_guest, "kept")
    world.again()
    assert [one.name for one in world.attachments()] == [name]
    assert world.state(name) == "ATTACHED"
    assert read(fresh_guest, 4) == "kept"
    assert world.attach(fresh_guest).attachment.name == name
    world.detach(name)
    assert world.attachments() == []
    assert fresh_guest.wait_disk("data", present=False) is None


def test_an_attachment_outlives_a_host_reboot(world, libvirtd, fresh_guest):
    """A reboot as the gateway sees it: QEMU, libvirtd and the gateway die at once, the domain is started anew."""
    world.create()
    attached = world.attach(fresh_guest).attachment
    assert attached.persistent
    write(fresh_guest, "kept")
    world.server.kill9()
    os.kill(fresh_guest.qemu_pid(), signal.SIGKILL)
    libvirtd.restart()
    fresh_guest.disconnect()
    world.again()
    assert world.state(attached.name) == "ATTACHED"
    fresh_guest.start(boot=True)
    assert read(fresh_guest, 4) == "kept"
    assert world.state(attached.name) == "ATTACHED"
    world.detach(attached.name)
    assert fresh_guest.wait_disk("data", present=False) is None
    assert "ua-vg-" not in fresh_guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def test_a_domain_that_is_gone_holds_nothing(world, new_guest):
    """Destroyed and undefined behind the gateway's back: the volume is free for the next domain."""
    first, second = new_guest(), new_guest()
    world.create()
    name = world.attach(first).attachment.name
    refusal = refused(world.wire.attachments.AttachVolume, attachment_pb2.AttachVolumeRequest(volume=VOLUME, domain=second.name))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert [subject for _, subject, _ in refusal.holders] == [name]
    first.remove()
    until(lambda: world.state(name) == "LOST")
    other = world.attach(second).attachment.name
    assert [one.name for one in world.attachments()] == [other]
    world.detach(other)


def test_a_prepared_disk_is_handed_over_by_somebody_else(world, fresh_guest):
    world.create()
    answer = world.attach(fresh_guest, prepare=True)
    assert world.state(answer.attachment.name) == "PREPARED"
    assert fresh_guest.wait_disk("data", present=False) is None
    fresh_guest.domain.attachDeviceFlags(answer.disk_xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    write(fresh_guest, "hand")
    assert read(fresh_guest, 4) == "hand"
    fresh_guest.detach_all()
    world.detach(answer.attachment.name)
    assert world.attachments() == []


def test_two_guests_share_a_raw_volume_that_says_so(world, new_guest):
    first, second = new_guest(), new_guest()
    world.create(form=RAW)
    shared = attachment_pb2.ACCESS_MODE_SHARED
    names = [world.attach(one, access=shared).attachment.name for one in (first, second)]
    write(first, "both")
    assert read(second, 4) == "both"
    for name in names:
        world.detach(name)


def test_readers_share_and_cannot_write(world, new_guest):
    first, second = new_guest(), new_guest()
    world.create(form=RAW)
    only = attachment_pb2.ACCESS_MODE_READ_ONLY
    names = [world.attach(one, access=only).attachment.name for one in (first, second)]
    status, _ = first.sh(f"printf x | dd of={first.wait_disk('data').device} conv=fsync 2>/dev/null")
    assert status != 0
    for name in names:
        world.detach(name)


def test_snapshots_under_a_writing_guest_keep_each_moment(world, fresh_guest):
    world.create()
    name = world.attach(fresh_guest).attachment.name
    for moment in ("m1", "m2", "m3"):
        write(fresh_guest, moment)
        world.snapshot(moment)
    write(fresh_guest, "now")
    assert read(fresh_guest, 3) == "now"
    world.drop_snapshot("m2")
    world.again()
    assert read(fresh_guest, 3) == "now"
    world.detach(name)
    world.idle()
    for number, moment in enumerate(("m1", "m3", "m1")):
        world.revert(moment, f"revert-{number}")
        name = world.attach(fresh_guest).attachment.name
        assert read(fresh_guest, 2) == moment
        world.detach(name)
        world.idle()
    for moment in ("m1", "m3"):
        world.drop_snapshot(moment)
    volumes = world.pool / "volumes"
    until(lambda: len(list(volumes.glob("data.*/*.qcow2"))) == 1)  # layers that nobody needs are merged after the answer
    world.idle()


def test_a_quiesced_snapshot_freezes_and_thaws(world, fresh_guest):
    world.create()
    name = world.attach(fresh_guest).attachment.name
    device = fresh_guest.wait_disk("data").device
    fresh_guest.run(f"mke2fs -F {device} >/dev/null 2>&1 && mount -t ext4 {device} /mnt && echo kept >/mnt/file")
    assert world.snapshot("calm", quiesce=True).quiesced
    fresh_guest.run("echo more >/mnt/after && sync", timeout=20)
    fresh_guest.run("umount /mnt")
    world.detach(name)
    world.idle()
    world.revert("calm", "revert")
    name = world.attach(fresh_guest).attachment.name
    device = fresh_guest.wait_disk("data").device
    assert fresh_guest.run(f"mount -t ext4 -o ro {device} /mnt && cat /mnt/file; ls /mnt; umount /mnt").split()[:1] == ["kept"]
    world.detach(name)


@pytest.mark.parametrize("bus", [attachment_pb2.DISK_BUS_VIRTIO_BLK, attachment_pb2.DISK_BUS_VIRTIO_SCSI])
def test_expansion_reaches_the_guest_and_is_never_undone(world, fresh_guest, bus):
    world.create()
    name = world.attach(fresh_guest, bus=bus).attachment.name
    request = volume_pb2.ExpandVolumeRequest(name=VOLUME, size_bytes=96 * MIB)
    for _ in range(2):
        world.wire.volumes.ExpandVolume(request, timeout=60)
        device = fresh_guest.wait_disk("data").device
        fresh_guest.run(f"echo 1 >/sys/block/{device.rpartition('/')[2]}/device/rescan 2>/dev/null || true")
        until(lambda device=device: int(fresh_guest.run(f"blockdev --getsize64 {device}")) == 96 * MIB)
    smaller = world.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=VOLUME, size_bytes=32 * MIB), timeout=60).volume
    assert smaller.size_bytes == 96 * MIB, "as in CSI: at least this size is there already"
    assert int(fresh_guest.run(f"blockdev --getsize64 {fresh_guest.wait_disk('data').device}")) == 96 * MIB
    world.detach(name)


def test_a_deaf_guest_is_told_as_pending_and_finished_later(world, fresh_guest):
    world.create()
    name = world.attach(fresh_guest).attachment.name
    fresh_guest.pause()
    answer = world.detach(name, wait=1)
    assert answer.attachment.name == name
    assert world.state(name) == "DETACHING"
    refusal = refused(world.wire.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=VOLUME), timeout=3)
    assert refusal.code in ("FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED")
    fresh_guest.resume()
    until(lambda: world.attachments() == [])
    assert fresh_guest.wait_disk("data", present=False) is None


def test_limits_change_under_a_guest_and_outlive_its_reboot(world, fresh_guest):
    def tuned(domain, flag):
        return domain.blockIoTune(world.attachments()[0].target, flag)["total_iops_sec"]

    world.create()
    unattached = volume_pb2.UpdateVolumeRequest(name=VOLUME, keep_labels=True, qos=volume_pb2.Qos(total_iops_sec=1))
    assert refused(world.wire.volumes.UpdateVolume, unattached).reason == "NOT_ATTACHED"
    name = world.attach(fresh_guest, qos=volume_pb2.Qos(read_iops_sec=100)).attachment.name
    request = volume_pb2.UpdateVolumeRequest(name=VOLUME, labels={"tier": "slow"}, qos=volume_pb2.Qos(total_iops_sec=500))
    for _ in range(2):
        volume = world.wire.volumes.UpdateVolume(request, timeout=60).volume
        assert volume.labels == {"tier": "slow"}
        for flag in (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG):
            assert tuned(fresh_guest.domain, flag) == 500
    assert world.attachments()[0].options.qos == volume_pb2.Qos(total_iops_sec=500)
    assert world.attach(fresh_guest, qos=volume_pb2.Qos(read_iops_sec=100)).attachment.name == name, "the repeat is what was asked first"
    lifted = volume_pb2.UpdateVolumeRequest(name=VOLUME, keep_labels=True, qos=volume_pb2.Qos())
    assert world.wire.volumes.UpdateVolume(lifted, timeout=60).volume.labels == {"tier": "slow"}
    assert tuned(fresh_guest.domain, libvirt.VIR_DOMAIN_AFFECT_LIVE) == 0
    world.detach(name)
