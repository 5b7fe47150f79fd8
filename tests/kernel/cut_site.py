"""The guest's part of the power cuts: a gateway on a disk that outlives the power, checked after each start, then called until the next cut.

`python -m tests.kernel.cut_site SEED [last]` prints to standard output; what was asked and answered stands in /share/asked, a line each, which no
power cut in the guest can lose. With `last` everything is removed at the end, and nothing may be left.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.edge.server import Server
from tests.kernel.attached import DOMAIN, SCSI, WAYS, left, qemu_writes, ways
from tests.kernel.san import LIO, eventually, sh
from tests.recovery.calls import Call, Caller
from volgate.v1 import pool_pb2, volume_pb2

SITE, DISK, ASKED = Path("/site"), "/dev/disk/by-id/virtio-site", Path("/share/asked")
SIZE, WRITTEN = 4 << 20, 64 << 10
PATIENCE = 150.0
CALLERS = 2
START_SECONDS = 300.0  # an emulated machine imports slowly, more so beside others
CONFIG = """
[hosts.local]
uri = "qemu:///system"
[pools.p]
kind = "iscsi"
iqn = "iqn.2026-01.org.volgate"
portals = ["{0}", "{1}"]
records = "/site/records"
[pools.p.directory]
path = "/site/pool"
"""


@dataclass
class Expected:
    """What must be there: volumes (perhaps: deleted or not), and the byte that each was filled with and flushed."""

    sure: set[str] = field(default_factory=set)
    perhaps: set[str] = field(default_factory=set)
    filled: dict[str, int] = field(default_factory=dict)


def expected() -> Expected:
    """Read what was asked and answered, in all lives."""
    found = Expected()
    for line in ASKED.read_text().splitlines() if ASKED.exists() else ():
        word, name, *rest = line.split()
        if word in ("create", "delete"):
            found.sure.discard(name)
            found.perhaps.add(name)
        if word == "created":
            found.sure.add(name)
            found.perhaps.discard(name)
        if word == "deleted":
            found.perhaps.discard(name)
        if word == "fill":
            found.filled.pop(name, None)
        if word == "filled":
            found.filled[name] = int(rest[0])
    return found


_pen = threading.Lock()


def note(*words: object) -> None:
    with _pen, ASKED.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def serve() -> Server:
    """The gateway, with its pool up."""
    sh(f"blkid {DISK} >/dev/null || mke2fs -q -t ext4 {DISK}; mkdir -p {SITE}; mount {DISK} {SITE}; mkdir -p {SITE}/pool")
    ways()
    server = Server(SITE / "state", config=CONFIG.format(*WAYS)).start(START_SECONDS)
    deadline = time.monotonic() + START_SECONDS
    with server.client() as client:
        while (pool := client.get_pool("pools/p")).health != pool_pb2.POOL_HEALTH_OK:
            assert time.monotonic() < deadline, f"{pool}{server.log.read_text()[-4000:]}"
            time.sleep(0.5)
    return server


def check(caller: Caller) -> None:
    """Nothing is under way, what was answered is so, each volume has its own content, and after a detach nothing of it stays."""
    wanted = expected()
    caller.settle(PATIENCE)
    there = set(caller.list_volumes())
    assert wanted.sure <= there <= wanted.sure | wanted.perhaps, f"{sorted(there)} are there, {wanted}"
    for record in caller.list_attachments():
        caller(Call("detach", {"name": record.name, "wait_seconds": 60, "request_id": f"after-{record.name}"}))
    caller.settle(PATIENCE)
    eventually(lambda: not left(), 60.0)
    for name in sorted(there & set(wanted.filled)):
        assert set(caller.content(name)[:WRITTEN]) == {wanted.filled[name]}, f"{name} is not as it was flushed"


def live(caller: Caller, dice: random.Random, number: int) -> None:
    """Make, attach, fill, detach, attach again, delete; over and over."""
    turn = 0
    while True:
        turn += 1
        name = f"v{number}-{turn}-{dice.randrange(1 << 30):x}"
        note("create", name)
        create = {
            "pool": "pools/p",
            "volume_id": name,
            "size_bytes": SIZE,
            "format": volume_pb2.VOLUME_FORMAT_RAW,
            "request_id": f"c-{name}",
        }
        caller(Call("create", create))
        note("created", name)
        byte = dice.randrange(1, 256)
        for time_of in ("first", "again"):
            key = f"{name}-{time_of}"
            asked = {"volume": f"pools/p/volumes/{name}", "domain": DOMAIN, "options": SCSI, "request_id": f"a-{key}"}
            record = caller(Call("attach", asked)).attachment
            if time_of == "first":
                note("fill", name)
                qemu_writes(record.alias, byte, 0, WRITTEN)
            caller(Call("detach", {"name": record.name, "wait_seconds": 60, "request_id": f"d-{key}"}))  # QEMU flushes
            if time_of == "first":
                note("filled", name, byte)
        if dice.random() < 0.5:
            note("delete", name)
            caller(Call("delete", {"name": f"pools/p/volumes/{name}", "request_id": f"x-{name}"}))
            note("deleted", name)


def clear(caller: Caller) -> None:
    """Remove every volume; the target, the pool and the records are empty then."""
    for name in caller.list_volumes():
        note("delete", name)
        caller(Call("delete", {"name": f"pools/p/volumes/{name}", "request_id": f"x-{name}"}))
    assert not list(LIO.glob("iscsi/iqn*")) and not list(LIO.glob("core/*/*/wwn"))
    assert not list((SITE / "records").glob("[!.]*")) and not list((SITE / "pool/volumes").glob("*"))


def main(seed: int, *, last: bool) -> None:
    """One life."""
    dice, server = random.Random(seed), serve()
    try:
        with Caller(server.address, PATIENCE) as caller:
            check(caller)
            print("checked", flush=True)
            if last:
                clear(caller)
                print("cleared", flush=True)
                return
            threads = [threading.Thread(target=live, args=(caller, random.Random(dice.random()), n), daemon=True) for n in range(CALLERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()  # one that ends has failed, and said so
    except BaseException:
        print(server.log.read_text()[-6000:], flush=True)
        raise
    finally:
        server.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), last="last" in sys.argv)
