"""A fenced host cannot write to a real cluster: a client in its network, at its address, loses its write, through the gateway."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import rbd

from tests.edge.wire import refused
from tests.labs.ceph import CLIENT, POOL, CephCluster
from tests.labs.network import Port
from tests.labs.site import HostNode, Site, until
from volgate.backend import PoolContext, VolumeId
from volgate.v1 import host_pb2, pool_pb2, snapshot_pb2, volume_pb2
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.settings import CephSettings

WIRE_SECONDS = 60.0
WRITER = """
import json, sys, time, rados, rbd
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
    """A client of the cluster that writes a counter, in the network of a host."""

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
            self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def cluster() -> list[CephCluster]:
    return []


@pytest.fixture
def site(stack: ExitStack, cluster: list[CephCluster]) -> Site:
    """A cluster, a controller and two hosts, each at an address of its own."""

    def pools(made: Site) -> str:
        port = made.network.add("ceph")
        cluster.append(stack.enter_context(CephCluster(namespace=port.namespace, address=port.address)))
        return cluster[0].toml("rbd")

    made = Site(pools=pools)
    stack.callback(made.close)
    made.controller.start()
    for name in ("h1", "h2"):
        made.add(name).start()
    return made


def writing(stack: ExitStack, cluster: CephCluster, node: HostNode, image: str) -> Writer:
    """A writer whose first write has landed, or failed."""
    made = Writer(cluster, node.port, image)
    stack.callback(made.close)
    return made


def test_a_fenced_host_loses_its_write_and_a_new_client_is_let_in(stack: ExitStack, site: Site, cluster: list[CephCluster]):
    (ceph,), wire = cluster, site.controller.wire
    h1, h2 = site.hosts["h1"], site.hosts["h2"]
    until(
        lambda: "Fences" in wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/rbd"), timeout=WIRE_SECONDS).pool.capabilities,
        what="the pool",
    )
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
    fence_attached(ceph, h1, made)
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
    again = writing(stack, ceph, h1, image)
    assert again.line() == "1"
    again.close()
    assert not [entry for entry in ceph.command("osd blocklist ls") or [] if entry["addr"].endswith(":0/0")]
    assert Path(site.controller.log).read_text().count(ceph.key_file.read_text()) == 0


def fence_attached(ceph: CephCluster, node: HostNode, volume: volume_pb2.Volume) -> None:
    """As FenceHost does for a volume that is attached on the host: its lock is broken, and the very client stays out for good."""
    with ceph.ioctx() as ioctx:
        marker = json.loads(ceph.rows(ioctx, "volgate.pool")["marker"])
    table = ceph.table()
    settings = CephSettings(**{**table, "monitors": tuple(table["monitors"])})
    backend = ceph.inside(lambda: CephRbd(settings, PoolContext("rbd", marker["instance"])))
    meant = VolumeId("v", volume.uid)
    assert [(holder.address.partition(":")[0], holder.locks) for holder in backend.holders(meant)] == [(node.port.address, True)]
    for _ in range(2):
        backend.fence([node.port.address], [meant])
    assert not [holder for holder in backend.holders(meant) if holder.locks]
    backend.close()
