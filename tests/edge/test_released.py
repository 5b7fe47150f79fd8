"""A host is released while a storage does not answer: it is kept out there as soon as the storage does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.deeds import registered
from tests.edge.secured import CONFIG, Secured, secured
from tests.labs.third_party import installed
from volgate.v1 import host_pb2, volume_pb2

POOL = """
[pools.asks]
kind = "asking"
path = "{top}/asks"
"""
OFTEN = CONFIG.replace("scan_seconds = 3600", "scan_seconds = 0.3").replace("check_seconds = 3600", "check_seconds = 2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secured]:
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site", "asking", "tests.attachments.asking"))
    with secured("host_dead_seconds = 0.3", OFTEN + POOL) as made:
        yield made


def volume_of(place: Secured, *hosts: str) -> Path:
    """The folder of a volume's notes: who reaches it."""
    request = volume_pb2.CreateVolumeRequest(
        pool="pools/asks", volume_id=place.name(), size_bytes=1 << 20, format=volume_pb2.VOLUME_FORMAT_RAW
    )
    folder = place.top / "asks.notes" / place.wire.volumes.CreateVolume(request, timeout=30).volume.uid
    folder.mkdir()
    for host in hosts:
        (folder / host).touch()
    return folder


def until(folder: Path, *hosts: str) -> None:
    """Wait until these alone reach the volume."""
    deadline = time.monotonic() + 30
    while (found := sorted(note.name for note in folder.iterdir())) != sorted(hosts):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def release(place: Secured, host: str) -> None:
    place.wire.hosts.ReleaseHost(host_pb2.ReleaseHostRequest(name=host, assume_off=True), timeout=30)


def test_a_host_that_was_released_is_kept_out_once_the_storage_answers_and_nobody_else_is(place: Secured) -> None:
    gone, silent = registered(place, "gone"), registered(place, "silent")
    first, second = volume_of(place, "gone", "silent", "nobody-knows"), volume_of(place, "gone")
    (first.parent / "refuse").touch()
    release(place, gone)
    place.line("a released host is not shut out yet", pool="asks")
    until(first, "gone", "nobody-knows", "silent")
    (first.parent / "refuse").unlink()
    until(first, "nobody-knows", "silent")
    until(second)
    release(place, silent)
    until(first, "nobody-knows")
    place.server.kill9()
    place.server.start()
    (second / "gone").touch()
    until(second)
    until(first, "nobody-knows")
