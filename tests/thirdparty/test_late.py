"""A built-in plugin whose process is lost while the machine is busy with its own start: its pools are served once it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire
from volgate.v1 import pool_pb2, volume_pb2

LOST = """
import os, signal, sys

if {mark!r} in os.listdir({folder!r}) and "volgate.worker.process" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While it is there, no worker lives long enough to import anything."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(LOST.format(mark="mark", folder=str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(site))
    mark = tmp_path / "mark"
    mark.touch()
    return mark


@pytest.fixture
def wire(tmp_path: Path, mark: Path) -> Iterator[Wire]:
    assert mark.exists()
    config = '[limits]\ncheck_seconds = 0.5\n[hosts.lab]\nuri = "test:///default"\n[pools.late]\nkind = "memory"\n'
    server = Server(tmp_path / "state", config=f'{config}[pools.good]\nkind = "directory"\npath = "{tmp_path}/good"\n').start()
    wire = Wire(server.address)
    yield wire
    wire.channel.close()
    assert server.stop() == 0


def pool(wire: Wire, name: str) -> pool_pb2.Pool:
    return wire.pools.GetPool(pool_pb2.GetPoolRequest(name=f"pools/{name}"), timeout=30).pool


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pool_is_served_once_its_plugin_comes(wire: Wire, mark: Path):
    assert pool(wire, "late").health == pool_pb2.POOL_HEALTH_DOWN
    assert "its import: the process that tried it was lost" in (told := pool(wire, "late").problem), told
    assert told.endswith("it is tried again")
    time.sleep(2)  # attempts that fail
    assert pool(wire, "good").health == pool_pb2.POOL_HEALTH_OK and pool(wire, "late").health == pool_pb2.POOL_HEALTH_DOWN
    mark.unlink()
    until(lambda: pool(wire, "late").health == pool_pb2.POOL_HEALTH_OK)
    made = wire.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/late", volume_id="v", size_bytes=1 << 20), timeout=30)
    assert made.volume.uid
