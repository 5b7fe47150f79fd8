"""The stations of an image: computed as the cluster has them, and told also when nobody answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import msgspec
import pytest

from tests.labs.ceph import POOL, CephCluster
from tests.soaking import count, draw
from volgate.backend import PoolContext, VolumeId
from volgate.model import Format, PathState, VolumeSpec
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.placement import group_of
from volgate_plugins.ceph_rbd.settings import CephSettings

MIB = 1 << 20
UID = "6d0f5d6e-2b0f-4a3c-9f6e-0c2f4b8d9a10"


@pytest.fixture
def backend(ceph: CephCluster) -> Iterator[CephRbd]:
    table = ceph.table(namespace=ceph.new_namespace(), operation_seconds=2.0, connect_seconds=2.0)
    opened = CephRbd(msgspec.convert(table, CephSettings), PoolContext("p", "here"))
    yield opened
    opened.close()


def test_objects_are_in_the_groups_that_ceph_says(ceph: CephCluster) -> None:
    drawn: random.Random = draw()
    odd = "twelve"
    ceph.command("osd pool create", pool=odd, pg_num=12, pgp_num=12, pool_type="replicated", size=1)
    for number in range(count(40, soak=2000)):
        pool, groups = ((POOL, 8), (odd, 12))[number % 2]
        namespace = ("", "tenant", "a-b.c")[number % 3]
        name = "".join(drawn.choices("abcdef0123456789._", k=1 + number % 50))
        found = ceph.command("osd map", pool=pool, object=name, **({"nspace": namespace} if namespace else {}))
        assert int(found["pgid"].partition(".")[2], 16) == group_of(name, groups, namespace), (pool, namespace, name)
    ceph.command("osd pool delete", pool=odd, pool2=odd, yes_i_really_really_mean_it=True)


def test_a_healthy_image_and_a_cluster_that_does_not_answer(ceph: CephCluster, backend: CephRbd) -> None:
    backend.create_volume(VolumeSpec("v", UID, 16 * MIB, Format.RAW))
    healthy = backend.paths(VolumeId("v", UID))
    assert [path.transport for path in healthy] == ["monitor", "pool", "osd"] and not [path for path in healthy if path.last_error]
    assert healthy[1].device.startswith(f"{POOL}/n") and int(healthy[1].facts["groups"]) in range(1, 9)
    assert "rbd_header." in healthy[2].facts["objects"] and "active+clean" in healthy[2].facts["objects"]
    with hanging(ceph, "mon.a"):
        monitor, pool = backend.paths(VolumeId("v", UID))
        assert monitor.state is PathState.FAILED and monitor.target == ceph.monitors[0] and "no answer in time" in monitor.last_error
        assert (pool.transport, pool.state) == ("pool", PathState.FAILED) and "no answer in time" in pool.last_error
    with hanging(ceph, "osd.0"):
        monitor, pool = backend.paths(VolumeId("v", UID))
        assert monitor.state is PathState.ACTIVE and pool.state is PathState.FAILED, "the monitors answer, the storage does not"


@contextlib.contextmanager
def hanging(ceph: CephCluster, name: str) -> Iterator[None]:
    ceph.freeze(name)
    try:
        yield
    finally:
        ceph.thaw(name)
