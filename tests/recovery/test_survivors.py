"""A command of a killed gateway that the kernel does not let go: the next gateway leaves its pool alone until it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugins.directory_rig import mounted
from tests.recovery.calls import POOL, Call, Refused, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.halting import Halting
from tests.recovery.images import make_image
from tests.recovery.pool_files import stray
from volgate.v1 import pool_pb2, volume_pb2

MIB = 1 << 20
OTHER = """
[pools.other]
kind = "directory"
path = "{}"
"""


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def freeze_without(pid: int, switch: Callable[[str], None]) -> None:
    """Freeze the file system while no thread of the process waits for it: one that does cannot be killed either."""
    deadline = time.monotonic() + 60
    while True:
        switch("-f")
        time.sleep(0.5)
        if all(thread.read_text().rpartition(")")[2].split()[0] != "D" for thread in Path(f"/proc/{pid}/task").glob("*/stat")):
            return
        switch("-u")
        assert time.monotonic() < deadline, "the gateway writes to the pool all the time"
        time.sleep(0.5)


@pytest.fixture
def frozen(base: Path):
    """A file system of its own, and what freezes and thaws it; thawed at the end whatever happens."""
    with mounted(base / "fs.img", "ext4", 256 * MIB, base / "mnt") as folder:

        def switch(flag: str) -> None:
            subprocess.run(["fsfreeze", flag, folder], check=True)

        yield folder, switch
        subprocess.run(["fsfreeze", "-u", folder], check=False, capture_output=True)


def test_a_pool_is_not_touched_while_a_dead_gateways_command_works_on_it(base: Path, frozen):
    folder, switch = frozen
    daemon = Daemon(base, pool=folder / "pool", extra=OTHER.format(base / "other"))
    image = make_image(daemon.images / "image.qcow2", 16 * MIB, 3)
    call = Call("import", {"pool": POOL, "volume_id": "v", "path": str(image), "source_format": volume_pb2.VOLUME_FORMAT_QCOW2, **rid()})
    daemon.start()
    with daemon.caller() as caller, ThreadPoolExecutor(1) as threads:
        with Halting(daemon, "qemu-img convert") as halting:
            running = threads.submit(caller.once, call)
            command = halting.caught()
            freeze_without(daemon.pid, switch)
        until(lambda: state(command) == "D")
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.process
        daemon.process.wait(20)
        with pytest.raises(Refused):
            running.result(20)
    assert state(command) == "D", "killed, and not gone"
    daemon.start()
    with daemon.caller() as caller:

        def pool(name: str) -> pool_pb2.Pool:
            return caller.pools.GetPool(pool_pb2.GetPoolRequest(name=name), timeout=20).pool

        until(lambda: f"process {command} (qemu-img)" in pool(POOL).problem, 60)  # a check that takes too long says only that
        assert pool(POOL).health == pool_pb2.POOL_HEALTH_DOWN
        assert pool("pools/other").health == pool_pb2.POOL_HEALTH_OK
        caller(Call("create", {"pool": "pools/other", "volume_id": "v", "size_bytes": MIB, **rid()}))
        with pytest.raises(Refused) as refused:
            caller.once(Call("create", {"pool": POOL, "volume_id": "w", "size_bytes": MIB, **rid()}), timeout=10)
        assert (refused.value.code, refused.value.reason) == ("UNAVAILABLE", "POOL_DOWN")
        switch("-u")
        until(lambda: not Path(f"/proc/{command}").exists())
        until(lambda: pool(POOL).health == pool_pb2.POOL_HEALTH_OK)
        assert caller(call).volume.size_bytes == 16 * MIB
        caller.settle()
        assert caller.list_volumes() and caller.volume("v", refresh=True).name == volume_name("v")
        assert stray(daemon.pool, daemon.state / "spool") == []
    assert daemon.stop() == 0
