"""A fence is proven wherever a volume has its data, and not begun where that cannot be proven: two pools, each on an OSD of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from tests.labs.ceph import POOL, CephCluster
from tests.plugins.ceph_rig import CHUNK, Pool, until
from volgate.backend import Fences
from volgate.errors import Denied, InDoubt

DATA = "data"
FAR = "192.0.2.7"  # nobody's: of a network for documentation
SECONDS = 2.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[CephCluster]:
    """The pool of the images on osd.0 alone, one for data on osd.1 alone."""
    with CephCluster(osds=2) as made:
        for number, kind in enumerate(("fast", "slow")):
            made.command("osd crush rm-device-class", ids=[str(number)])
            made.command("osd crush set-device-class", **{"class": kind}, ids=[str(number)])
            made.command("osd crush rule create-replicated", **{"name": kind, "root": "default", "type": "osd", "class": kind})
        made.command("osd pool set", pool=POOL, var="crush_rule", val="fast")
        made.command("osd pool create", pool=DATA, pg_num=8, pgp_num=8, pool_type="replicated", rule="slow", size=1)
        made.command("osd pool application enable", pool=DATA, app="rbd")
        made.wait_whole()
        yield made


@pytest.fixture
def pool(cluster: CephCluster) -> Iterator[Pool]:
    """A pool that was configured with a data pool once, and is without it now: its image keeps the data where they are."""
    caps = f"profile rbd pool={POOL}, profile rbd pool={DATA}"
    key = cluster.new_client("both", mon='profile rbd, allow command "osd blocklist" with blocklistop=rm', osd=caps, mgr=caps)
    both = {"user": "both", "key": f"file:{key}", "operation_seconds": SECONDS, "connect_seconds": SECONDS}
    made = Pool(cluster, **both, data_pool=DATA)
    made.create("a", CHUNK)
    made.settings = dataclasses.replace(made.settings, data_pool="")
    made.reopen()
    yield made
    made.close()


def fences(pool: Pool) -> Fences:
    assert isinstance(pool.backend, Fences)
    return pool.backend


def test_a_fence_waits_for_the_osd_that_holds_only_data(cluster: CephCluster, pool: Pool) -> None:
    cluster.freeze("osd.1")
    try:
        with pytest.raises(InDoubt, match="no answer"):
            fences(pool).fence([FAR], [])
        assert fences(pool).fenced([FAR]) == [FAR], "kept out already; that it holds everywhere is not proven"
    finally:
        cluster.thaw("osd.1")
    until(lambda: _fenced(pool))
    fences(pool).unfence([FAR])


def _fenced(pool: Pool) -> bool:
    try:
        fences(pool).fence([FAR], [])
    except InDoubt:
        return False
    return True


def test_a_key_that_may_not_ask_the_data_pool_begins_no_fence(cluster: CephCluster, pool: Pool) -> None:
    caps = f"profile rbd pool={POOL}"
    key = cluster.new_client("narrow", mon="profile rbd", osd=caps, mgr=caps)
    pool.settings = dataclasses.replace(pool.settings, user="narrow", key=f"file:{key}")
    pool.reopen()
    with pytest.raises(Denied, match="capability"):
        fences(pool).fence([FAR], [])
    assert fences(pool).fenced([FAR]) == []
