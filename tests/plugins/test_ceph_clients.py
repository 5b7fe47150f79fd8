"""The clients that a gateway is to a Ceph cluster: one connection for a pool, and what becomes of those that died or were shut out."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rbd

from tests.labs.ceph import CephCluster
from tests.plugins.ceph_rig import MIB, Pool, until
from volgate.errors import VolgateError
from volgate.model import Health


@pytest.fixture
def pool(ceph: CephCluster) -> Iterator[Pool]:
    made = Pool(ceph)
    yield made
    made.close()


def test_a_client_that_was_shut_out_comes_back_with_the_next_call(pool: Pool):
    made = pool.create("a")
    assert pool.backend.check().health is Health.OK
    with pool.ioctx() as ioctx:
        address = next(key for key in pool.cluster.rows(ioctx, "volgate.pool") if key.startswith("client.")).removeprefix("client.")
    pool.cluster.command("osd blocklist", blocklistop="add", addr=address)
    pool.cluster.admin.wait_for_latest_osdmap()

    def reads() -> bool:
        try:
            return pool.backend.get_volume("a").uid == made.uid and pool.cut(made, uuid.uuid4().hex[:8]).size == MIB
        except VolgateError as error:
            assert error.status in ("UNAVAILABLE", "ABORTED"), error
            return False

    until(reads)


def test_all_calls_of_a_pool_go_over_one_connection(pool: Pool):
    pool.create("first")
    before = _to_monitors(pool)

    def live(number: int) -> int:
        made = pool.create(f"v{number}")
        pool.cut(made)
        assert pool.backend.check().health is Health.OK and pool.backend.capacity().provisioned
        return _to_monitors(pool)

    with ThreadPoolExecutor(12) as threads:
        assert max(threads.map(live, range(12))) <= before
    with pool.ioctx() as ioctx:
        assert len([key for key in pool.cluster.rows(ioctx, "volgate.pool") if key.startswith("client.")]) == 1


def test_a_lock_that_this_client_left_behind_is_dropped_and_one_that_it_holds_is_asked_for(pool: Pool):
    made = pool.create("a")
    with pool.backend._store.use() as link:
        header = f"rbd_header.{pool.backend.connection(pool.id(made), host='h').image_id}"
        link.ioctx.lock_exclusive(header, "rbd_lock", "auto 12345", "", None)
        pool.cut(made, "one")
        with rbd.Image(link.ioctx, made.object) as image:  # as librbd has it by itself, to purge a clone of it
            image.write(b"x", 0)
            pool.cut(made, "other")
            image.write(b"y", 0)
        assert not link.retired and link.address not in dict(pool.cluster.command("osd dump")["blocklist"])
    assert pool.read(made, 1) == b"y"


KILLED = """
import json, os, signal, sys
from tests.plugins.ceph_rig import open_pool
from volgate.settings import convert_strictly
from volgate_plugins.ceph_rbd import CephSettings
open_pool(convert_strictly(json.loads(sys.argv[1]), CephSettings, "p")).check()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_client_that_died_is_shut_out_once_by_all_that_come_after_it(pool: Pool):
    table, before = dict(pool.cluster.table(namespace=pool.namespace)), _clients(pool)
    for _ in range(4):  # each but the first finds one that died
        done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(table)], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
    dead = _clients(pool) - before
    pool.reopen()
    until(lambda: _times_shut_out(pool, dead) >= 4)  # the log comes a moment later, in order
    assert (len(dead), _times_shut_out(pool, dead)) == (4, 4)


def _clients(pool: Pool) -> set[str]:
    with pool.ioctx() as ioctx:
        return {key.removeprefix("client.") for key in pool.cluster.rows(ioctx, "volgate.pool") if key.startswith("client.")}


def _times_shut_out(pool: Pool, addresses: set[str]) -> int:
    said = pool.cluster.command("log last", num=1000, level="info", channel="audit")
    lines = [line["message"] for line in said if "osd blocklist" in line["message"] and line["message"].endswith("finished")]
    return sum(f'"addr": "{address}"' in line for line in lines for address in addresses)


def _to_monitors(pool: Pool) -> int:
    """How many connections this process has to monitors: those that the lab has for itself among them."""
    ports = {int(monitor.rpartition(":")[2]) for monitor in pool.cluster.monitors}
    own = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            own.add(str(path.readlink()))
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(int(row[2].partition(":")[2], 16) in ports and f"socket:[{row[9]}]" in own for row in rows)
