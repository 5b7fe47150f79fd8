"""What a worker process costs a call, and what a pool that hangs costs the others."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.bench import MIB, Bench
from tests.bench.measure import MS, Row, interleave, percentile
from tests.edge.server import Server
from tests.labs.third_party import installed
from volgate_client import Client, VolgateError

SOURCE = """
from volgate.backend import BackendType, hookimpl
from volgate_plugins.directory import Directory, DirectorySettings

@hookimpl
def volgate_backends():
    return [BackendType(kind="apart", settings=DirectorySettings, open=Directory.open, summary="directory, in a worker")]
"""
WAITING = 16  # calls that the hung pool keeps meanwhile
SAMPLE = 200
PAIRS = 10


@contextlib.contextmanager
def _serving(bench: Bench, name: str) -> Iterator[tuple[Server, Client]]:
    """A gateway with the same backend twice: `near` in its own threads, `far` in a worker; each with a volume `v`."""
    top, before = bench.place(f"{name}-files"), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = installed(top / "site", "apart", "vgbench_apart", source=SOURCE)
    config = '[hosts.lab]\nuri = "test:///default"\n[limits]\nscan_seconds = 3600\ncheck_seconds = 3600\n'
    config += f'[pools.near]\nkind = "directory"\npath = "{top}/near"\n[pools.far]\nkind = "apart"\npath = "{top}/far"\n'
    try:
        with bench.serving(name, config) as server, server.client() as client:
            for pool in ("near", "far"):
                client.create_volume(f"pools/{pool}", "v", size_bytes=MIB)
            yield server, client
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _reads(client: Client, pool: str) -> Callable[[int], object]:
    """GetVolume from the storage, through the pool's lane."""
    return lambda _: client.get_volume(f"pools/{pool}/volumes/v", refresh=True)


def worker(bench: Bench) -> list[Row]:
    """Rows of one call that passes through a worker, beside the same in a thread."""
    with _serving(bench, "worker") as (_, client):
        return interleave(bench.rounds(1000), _reads(client, "far"), _reads(client, "near")).rows("call through a worker")


def isolation(bench: Bench) -> list[Row]:
    """The p99 of a pool while another one hangs, beside its p99 while none does: the median of ten pairs."""
    with _serving(bench, "isolation") as (server, client), ThreadPoolExecutor(WAITING) as threads:
        (pid,) = _workers(server)
        ours, reference = list[float](), list[float]()
        for _ in range(PAIRS + 1):
            reference.append(_p99(bench, _reads(client, "near")))
            os.kill(pid, signal.SIGSTOP)
            waiting = [threads.submit(_reads(client, "far"), 0) for _ in range(WAITING)]
            try:
                ours.append(_p99(bench, _reads(client, "near")))
            finally:
                os.kill(pid, signal.SIGCONT)
            for call in waiting:
                with contextlib.suppress(VolgateError):
                    call.result()
    ratio = statistics.median(our / their for our, their in zip(ours[1:], reference[1:], strict=True))
    return [Row("get p99 while another pool hangs", statistics.median(ours[1:]) * MS, statistics.median(reference[1:]) * MS, ratio)]


def _p99(bench: Bench, call: Callable[[int], object]) -> float:
    took = list[float]()
    for number in range(bench.scaled(SAMPLE, 20)):
        began = time.perf_counter()
        call(number)
        took.append(time.perf_counter() - began)
    return percentile(took, 0.99)


def _workers(server: Server) -> list[int]:
    """The worker processes of a gateway."""
    assert server.process
    below, found = [server.process.pid], list[int]()
    for pid in below:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            below += map(int, task.read_text().split())
        if "volgate.worker.process" in Path(f"/proc/{pid}/cmdline").read_text():
            found.append(pid)
    return found


GROUPS = {"worker": worker, "isolation": isolation}
