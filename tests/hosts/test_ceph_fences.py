"""A fenced host cannot write to a real cluster: a client in its network, at its address, loses its write, through the gateway."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import rbd

from tests.edge.wire import refusal, refused
from tests.labs.ceph import CLIENT, POOL, CephCluster
from tests.labs.network import Port
from tests.labs.site import HostNode, Site, until
from volgate.backend import PoolContext, VolumeId
from volgate.v1 import attachment_pb2, host_pb2, pool_pb2, snapshot_pb2, volume_pb2
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.settings import CephSettings

WIRE_SECONDS = 60.0
PATIENCE = 90.0
GET = pool_pb2.GetPoolRequest(name="pools/rbd")
WRITE = "yes {word} | dd of={device} bs=64k count=1 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null"
WRITER = """
import json, signal, sys, time, rados, rbd
signal.signal(signal.SIGINT, signal.default_int_handler)
image, conf = json.loads(sys.argv[1])
client = rados.Rados(rados_id=conf.pop("user"), conf={"key": open(conf.pop("file")).read(), **conf})
try:
    client.connect()
    with client.open_ioctx("POOL") as ioctx, rbd.Image(ioctx, image) as opened:
        for number in range(1, 1 << 30):
            opened.write(number.to_bytes(8, "big"), 0)
            opened.flush()
            print(number, flush=True)
            time.sleep(0.02)
except KeyboardInterrupt:
    pass
except (rados.Error, rbd.Error) as error:
    print(type(error).__name__, flush=True)
""".replace("POOL", POOL)


class Writer:
    """A client of the cluster that writes a counter, in the network of a host.

    It asks for SIGINT: what a shell starts in the background ignores it, and so would all that this starts.
    """

    def __init__(self, cluster: CephCluster, port: Port, image: str) -> None:
        conf = {"mon_host": ",".join(cluster.monitors), "file": str(cluster.key_file), "user": CLIENT, "rbd_cache": "false"}
        command = port.inside("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", WRITER, json.dumps([image, conf]))
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> list[str]:
        """All that it still says, once it has ended by itself."""
        said, _ = self.process.communicate(timeout=60)
        return said.split()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # it lets go of the image: one that is killed keeps its lock for half a minute
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:  # librbd may wait in its own close for longer
                self.process.kill()
                self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(scope="module")
def cluster() -> list[CephCluster]:
    """The one of the site, once that is there."""
    return []


@pytest.fixture(scope="module")
def site(cluster: list[CephCluster]) -> Iterator[Site]:
    """A cluster, a controller and two hosts with a guest each, all at addresses of their own."""
    with ExitStack() as stack:

        def pools(made: Site) -> str:
            port = made.network.add("ceph")
            cluster.append(stack.enter_context(CephCluster(namespace=port.namespace, address=port.address)))
            return cluster[0].toml("rbd")

        made = Site(pools=pools)
        stack.callback(made.close)
        made.controller.start()
        for name in ("h1", "h2"):
            made.add(name, guest=True).start()
        until(lambda: "Fences" in made.controller.wire.pools.GetPool(GET, timeout=WIRE_SECONDS).pool.capabilities, what="the pool")
        yield made


def writing(stack: ExitStack, cluster: CephCluster, node: HostNode, image: str) -> Writer:
    """A writer whose first write has landed, or failed."""
    made = Writer(cluster, node.port, image)
    stack.callback(made.close)
    return made


def test_a_fenced_host_loses_its_write_and_a_new_client_is_let_in(stack: ExitStack, site: Site, cluster: list[CephCluster]):
    (ceph,), wire = cluster, site.controller.wire
    h1, h2 = site.hosts["h1"], site.hosts["h2"]
    made = wire.volumes.CreateVolume(
        volume_pb2.CreateVolumeRequest(pool="pools/rbd", volume_id="v", size_bytes=16 << 20), timeout=60
    ).volume
    with ceph.ioctx() as ioctx:
        (image,) = rbd.RBD().list(ioctx)
    lost = writing(stack, ceph, h1, image)
    assert [lost.line() for _ in range(3)] == ["1", "2", "3"]
    own = refused(wire.hosts.FenceHost, host_pb2.FenceHostRequest(name="hosts/h1", addresses=[site.controller.port.address]))
    assert (own.code, own.reason) == ("FAILED_PRECONDITION", "FENCE_SELF")
    answer = wire.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS)
    assert (list(answer.addresses), list(answer.host.fenced_pools)) == ([h1.port.address], ["pools/rbd"])
    with ceph.ioctx() as ioctx, rbd.Image(ioctx, image, read_only=True) as opened:
        proven = opened.read(0, 8)
    *landed, said = lost.end()
    assert said == "ConnectionShutdown" and int.from_bytes(proven, "big") - int(landed[-1]) in (0, 1), (
        "an answer may be lost, no write lands later"
    )
    with ceph.ioctx() as ioctx, rbd.Image(ioctx, image, read_only=True) as opened:
        assert opened.read(0, 8) == proven
    fence_attached(ceph, h1, made, image)
    other = writing(stack, ceph, h2, image)
    assert other.line() == "1", "another host has the lock at once, and writes"
    assert writing(stack, ceph, h1, image).end() == ["ConnectionShutdown"], "a new client there cannot even open it"
    cut = snapshot_pb2.CreateSnapshotGroupRequest(pool="pools/rbd", snapshots={"v": "s"})
    assert wire.snapshots.CreateSnapshotGroup(cut, timeout=WIRE_SECONDS).snapshots[0].name == f"{made.name}/snapshots/s", (
        "the gateway goes on"
    )
    other.close()
    site.controller.again()
    h1.wait_live()
    unfence = host_pb2.UnfenceHostRequest(name="hosts/h1")
    until(lambda: not wire.hosts.UnfenceHost(unfence, timeout=WIRE_SECONDS, wait_for_ready=True).host.fenced_pools)
    h2.wait_live()
    again = writing(stack, ceph, h1, image)
    assert again.line() == "1"
    again.close()
    assert not [entry for entry in ceph.command("osd blocklist ls") or [] if entry["addr"].endswith(":0/0")]
    assert Path(site.controller.log).read_text().count(ceph.key_file.read_text()) == 0


def lockers(ceph: CephCluster, image: str) -> list[str]:
    """Where those are who hold an image's lock."""
    with ceph.ioctx() as ioctx, rbd.Image(ioctx, image, read_only=True) as opened:
        return [address.partition(":")[0] for _, _, address in (opened.list_lockers() or {"lockers": []})["lockers"]]


def fence_attached(ceph: CephCluster, node: HostNode, volume: volume_pb2.Volume, image: str) -> None:
    """As FenceHost does for a volume that is attached on the host: its lock is broken, and the very client stays out for good."""
    with ceph.ioctx() as ioctx:
        marker = json.loads(ceph.rows(ioctx, "volgate.pool")["marker"])
    table = ceph.table()
    settings = CephSettings(**{**table, "monitors": tuple(table["monitors"])})
    backend = ceph.inside(lambda: CephRbd(settings, PoolContext("rbd", marker["instance"])))
    meant = VolumeId("v", volume.uid)
    assert lockers(ceph, image) == [node.port.address]
    for _ in range(2):
        backend.fence([node.port.address], [meant])
    assert lockers(ceph, image) == []
    backend.close()


def attach(site: Site, node: HostNode, volume: volume_pb2.Volume) -> attachment_pb2.AttachVolumeRequest:
    """The guest is told of I/O errors: QEMU would stop it."""
    assert node.guest
    options = attachment_pb2.DiskOptions(error_policy=attachment_pb2.ERROR_POLICY_REPORT)
    return attachment_pb2.AttachVolumeRequest(volume=volume.name, host=f"hosts/{node.name}", domain=node.guest.name, options=options)


def test_a_fenced_guest_cannot_write_and_its_volume_goes_to_another(site: Site, cluster: list[CephCluster]):
    (ceph,), wire, h1, h2 = cluster, site.controller.wire, site.hosts["h1"], site.hosts["h2"]
    assert h1.guest and h2.guest and h1.libvirtd
    request = volume_pb2.CreateVolumeRequest(pool="pools/rbd", volume_id="disk", size_bytes=16 << 20)
    volume = wire.volumes.CreateVolume(request, timeout=WIRE_SECONDS).volume
    first = wire.attachments.AttachVolume(attach(site, h1, volume), timeout=WIRE_SECONDS).attachment
    lost = h1.guest.wait_disk(first.options.serial).device
    h1.guest.run(WRITE.format(word="first", device=lost))
    with ceph.ioctx() as ioctx, rbd.Image(ioctx, f"disk.{volume.uid[:8]}", read_only=True) as image:
        assert [one["addr"].partition(":")[0] for one in image.watchers_list()] == [h1.port.address], "the guest's client is its host's"
    h1.libvirtd.restart()
    secrets = h1.guest.connection.listAllSecrets
    until(lambda: [one for one in secrets() if one.usageID().startswith("volgate ")], PATIENCE, "the key after a restart of libvirtd")
    assert refused(wire.attachments.AttachVolume, attach(site, h2, volume), timeout=WIRE_SECONDS).reason == "IN_USE"
    answer = wire.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS)
    assert list(answer.addresses) == [h1.port.address] and not answer.unfenced_attachments
    assert h1.guest.sh(WRITE.format(word="fenced", device=lost))[0] != 0, "the guest's write fails"
    assert "hosts/h1 is fenced" in attachments(site)[first.name], "nothing else shows at a disk that is still there"
    running = refused(wire.hosts.UnfenceHost, host_pb2.UnfenceHostRequest(name="hosts/h1"), timeout=PATIENCE)
    assert running.reason == "IN_USE" and ("domain", "guest-h1") in [holder[:2] for holder in running.holders]
    second = wire.attachments.AttachVolume(attach(site, h2, volume), timeout=WIRE_SECONDS).attachment
    assert attachments(site) == {second.name: ""}, "the fenced one went with it"
    device = h2.guest.wait_disk(second.options.serial).device
    read = "dd if={device} bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1"
    assert h2.guest.run(read.format(device=device)) == "first"
    h2.guest.run(WRITE.format(word="second", device=device))
    assert h1.guest.sh(WRITE.format(word="late", device=lost))[0] != 0
    wire.hosts.UnfenceHost(host_pb2.UnfenceHostRequest(name="hosts/h1"), timeout=PATIENCE)
    assert h1.guest.disks() == [] and h2.guest.run(read.format(device=device)) == "second"
    wire.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=second.name, wait_seconds=60), timeout=PATIENCE)
    third = until(lambda: _attached(site, h1, volume), PATIENCE, "an attach on the host that was let in")
    assert h1.guest.run(read.format(device=h1.guest.wait_disk(third.options.serial).device)) == "second"
    wire.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=third.name, wait_seconds=60), timeout=PATIENCE)
    assert h1.guest.disks() == []


def attachments(site: Site) -> dict[str, str]:
    """What is wrong with each attachment."""
    request = attachment_pb2.ListAttachmentsRequest()
    return {one.name: one.problem for one in site.controller.wire.attachments.ListAttachments(request, timeout=WIRE_SECONDS).attachments}


def _attached(site: Site, node: HostNode, volume: volume_pb2.Volume) -> attachment_pb2.Attachment | None:
    try:
        return site.controller.wire.attachments.AttachVolume(attach(site, node, volume), timeout=WIRE_SECONDS).attachment
    except grpc.RpcError as error:
        assert refusal(error).reason in ("HOST_UNSETTLED", "HOST_DOWN"), error
        return None
