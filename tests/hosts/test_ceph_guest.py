"""A guest on a host of its own, with a disk on a real cluster: reached by the host's key and address, and kept out by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import rbd

from tests.edge.wire import refused
from tests.labs.ceph import CephCluster
from tests.labs.domain import Guest
from tests.labs.site import HostNode, Site, until
from volgate.v1 import attachment_pb2, host_pb2, pool_pb2, volume_pb2

SECONDS = 90.0
MIB = 1 << 20
VOLUME = "pools/rbd/volumes/v"
WRITE = "yes {word} | dd of={device} bs=4096 count=1 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def cluster() -> list[CephCluster]:
    return []


@pytest.fixture
def site(stack: ExitStack, cluster: list[CephCluster]) -> Site:
    """A cluster, a controller and two hosts with guests, each at an address of its own."""

    def pools(made: Site) -> str:
        port = made.network.add("ceph")
        cluster.append(stack.enter_context(CephCluster(namespace=port.namespace, address=port.address)))
        return cluster[0].toml("rbd")

    made = Site(pools=pools)
    stack.callback(made.close)
    made.controller.start()
    for name in ("h1", "h2"):
        made.add(name, guest=True).start()
    until(lambda: "Fences" in pool(made).capabilities, what="the pool")
    return made


def pool(site: Site) -> pool_pb2.Pool:
    return site.controller.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/rbd"), timeout=SECONDS).pool


def attach(site: Site, node: HostNode, **options: object) -> attachment_pb2.Attachment:
    return site.controller.wire.attachments.AttachVolume(request(node, **options), timeout=SECONDS).attachment


def request(node: HostNode, **options: object) -> attachment_pb2.AttachVolumeRequest:
    assert node.guest
    wanted = attachment_pb2.DiskOptions(serial="v", error_policy=attachment_pb2.ERROR_POLICY_REPORT, **options)
    return attachment_pb2.AttachVolumeRequest(volume=VOLUME, host=f"hosts/{node.name}", domain=node.guest.name, options=wanted)


def write(guest: Guest, word: str) -> bool:
    """Whether a write of the guest lands."""
    disk = guest.wait_disk("v")
    return guest.sh(WRITE.format(word=word, device=disk.device), timeout=60)[0] == 0


def test_a_guest_is_kept_out_by_a_fence_and_its_volume_goes_on_elsewhere(site: Site, cluster: list[CephCluster]) -> None:
    (ceph,), wire, h1, h2 = cluster, site.controller.wire, site.hosts["h1"], site.hosts["h2"]
    assert h1.guest and h2.guest and h1.libvirtd
    wire.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/rbd", volume_id="v", size_bytes=16 * MIB), timeout=SECONDS)
    made = attach(site, h1)
    assert write(h1.guest, "first")
    with ceph.ioctx() as ioctx, rbd.Image(ioctx, rbd.RBD().list(ioctx)[0], read_only=True) as image:
        assert [one["addr"].partition(":")[0] for one in image.watchers_list()] == [h1.port.address], "the guest's client is its host's"
    h1.libvirtd.restart()
    secrets = h1.guest.connection.listAllSecrets
    until(lambda: [one for one in secrets() if one.usageID().startswith("volgate ")], what="the key after a restart of libvirtd")
    assert refused(wire.attachments.AttachVolume, request(h2), timeout=SECONDS).reason == "IN_USE"
    wire.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"), timeout=SECONDS)
    assert not write(h1.guest, "late"), "a fenced guest cannot write"
    elsewhere = attach(site, h2)
    disk = h2.guest.wait_disk("v")
    assert h2.guest.run(f"head -c 5 {disk.device}") == "first" and write(h2.guest, "second")
    assert (
        not write(h1.guest, "later")
        and h2.guest.run(f"dd if={disk.device} bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1") == "second"
    )
    names = [one.name for one in wire.attachments.ListAttachments(attachment_pb2.ListAttachmentsRequest(), timeout=SECONDS).attachments]
    assert names == [elsewhere.name] != [made.name]
    wire.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=elsewhere.name, wait_seconds=20), timeout=SECONDS)
    assert h2.guest.disks() == []
