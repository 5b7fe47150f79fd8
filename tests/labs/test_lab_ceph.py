"""The private Ceph cluster of the labs, and the lab for people."""

import contextlib
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import rados
import rbd

from tests.labs.ceph import OTHER_POOL, POOL, TENANT, CephCluster
from tests.labs.guest import BUILD
from tests.labs.lab import CEPH_BASE, running
from tests.labs.network import Network

ROOT = Path(__file__).parents[2]
READY_SECONDS = 60


@contextlib.contextmanager
def client(cluster: CephCluster, pool: str = POOL, **options: str) -> Iterator[rados.Ioctx]:
    connection = cluster.connect(**options)
    try:
        with connection.open_ioctx(pool) as ioctx:
            yield ioctx
    finally:
        connection.shutdown()


def test_a_cluster_survives_the_loss_of_each_daemon_and_leaves_nothing():
    begun = time.monotonic()
    with CephCluster(store="bluestore") as cluster:
        assert time.monotonic() - begun < READY_SECONDS
        with client(cluster) as ioctx:
            rbd.RBD().create(ioctx, "kept", 1 << 20)
            for name in ("osd.0", "mon.a"):
                cluster.kill(name)
                cluster.restart(name)
                assert rbd.RBD().list(ioctx) == ["kept"]
            rbd.RBD().create(ioctx, "more", 1 << 20)
        cluster.freeze("osd.0")
        with client(cluster, rados_osd_op_timeout="1") as ioctx, pytest.raises(rbd.Timeout):
            rbd.RBD().list(ioctx)
        cluster.thaw("osd.0")
        cluster.wait_ready()
        base, pids = cluster.base, [cluster.pid(name) for name in cluster.daemons]
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert not base.exists() and not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_clients_key_is_for_its_pools_alone(ceph: CephCluster):
    for path in (ceph.key_file, ceph.admin_key_file):
        assert path.stat().st_mode & 0o777 == 0o600
    with client(ceph) as ioctx, client(ceph, OTHER_POOL) as other:
        rbd.RBD().create(ioctx, "mine", 1 << 20)
        rbd.RBD().remove(ioctx, "mine")
        assert TENANT in rbd.RBD().namespace_list(ioctx) and rbd.RBD().list(other) == []
    connection = ceph.connect()
    try:
        assert connection.mon_command('{"prefix": "osd pool create", "pool": "taken"}', b"")[0] < 0
    finally:
        connection.shutdown()
    ceph.set_quota(1 << 30)
    assert ceph.command("osd pool get-quota", pool=POOL)["quota_max_bytes"] == 1 << 30
    ceph.set_quota(0)
    assert ceph.new_namespace() != ceph.new_namespace()


def test_a_cluster_stands_at_an_address_of_a_network_of_its_own():
    network = Network()
    try:
        port = network.add("ceph")
        with CephCluster(address=port.address, namespace=port.namespace) as cluster, client(cluster) as ioctx:
            rbd.RBD().create(ioctx, "there", 1 << 20)
            assert cluster.monitors[0].startswith(port.address) and rbd.RBD().list(ioctx) == ["there"]
    finally:
        network.close()


def test_the_lab_for_people_has_pools_that_a_configuration_names():
    def lab(action: str) -> str:
        argv = [sys.executable, "-m", "tests.labs.lab", action, "ceph"]
        return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    mine = not running(BUILD / "ceph")  # somebody may be at work in it
    printed = lab("start")
    try:
        pools = tomllib.loads((BUILD / "ceph" / "volgate.toml").read_text())["pools"]
        assert {pool["kind"] for pool in pools.values()} == {"ceph-rbd"}
        assert [(pool["pool"], pool.get("namespace", "")) for pool in pools.values()] == [(POOL, ""), (OTHER_POOL, ""), (POOL, TENANT)]
        assert lab("start") == printed
    finally:
        if mine:
            lab("stop")
            assert not CEPH_BASE.exists()
