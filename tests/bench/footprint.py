"""What an idle gateway weighs, how soon a new one answers, and what one fsync costs on this machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.bench import GIB, MIB, Bench
from tests.bench.measure import MS, Pairs, Row, percentile
from tests.bench.mutations import Ours
from tests.bench.native import sync
from tests.bench.processes import family, running, until_answered
from volgate.v1 import pool_pb2, volume_pb2
from volgate_client import Client


def startup(bench: Bench) -> list[Row]:
    """From the start of the process to the first answered call, beside a bare grpc.aio server."""
    folder = bench.place("startup")
    pairs = Pairs()
    for number in bench.rounds(6):
        state, socket = folder / f"state-{number}", folder / f"echo-{number}"
        arguments = ["volgate.cli", "serve", "--state-dir", str(state)]
        pairs.ours.append(
            _first_answer(arguments, folder, state / "volgate.sock", lambda c: c.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=5))
        )
        pairs.reference.append(
            _first_answer(
                ["tests.bench.echo", str(socket)], folder, socket, lambda c: c.volumes.GetVolume(volume_pb2.GetVolumeRequest(), timeout=5)
            )
        )
    return [pairs.middle("start-up")]


def _first_answer(arguments: list[str], folder: Path, socket: Path, call: Callable[[Client], object]) -> float:
    began = time.perf_counter()
    with running(arguments, folder / "log"), Client(f"unix:{socket}") as client:
        until_answered(socket, lambda: call(client))
        return time.perf_counter() - began


def memory(bench: Bench) -> list[Row]:
    """Proportional set size after some calls and rest, of every process of the gateway."""
    with bench.serving("memory") as server, server.client() as client:
        calls = Ours(client)
        for number in range(bench.scaled(20)):
            calls.create(f"memory-{number}", "qcow2", GIB)
            calls.expand(f"memory-{number}", 2 * GIB)
        time.sleep(max(0.2, 3 * bench.scale))
        assert server.process
        ours = family(server.process.pid)
    folder = bench.place("memory-echo")
    with running(["tests.bench.echo", str(folder / "socket")], folder / "log") as process, Client(f"unix:{folder}/socket") as client:
        until_answered(folder / "socket", lambda: client.volumes.GetVolume(volume_pb2.GetVolumeRequest(), timeout=5))
        theirs = sum(family(process.pid).values())
    total = sum(ours.values())
    parts = [Row(f"idle PSS of {name}", size / MIB) for name, size in ours.items()]
    return [Row("idle PSS", total / MIB, theirs / MIB, total / theirs), *parts]


def fsync(bench: Bench) -> list[Row]:
    """What every durable step stands on: one fsync of a file with 4 KiB of new data, and of a folder with one new entry."""
    folder = bench.place("fsync")
    found: dict[str, list[float]] = {"file": [], "folder": []}
    for number in bench.rounds(200, seconds=5):
        path = folder / str(number)
        path.write_bytes(os.urandom(4096))
        for name, target in (("file", path), ("folder", folder)):
            began = time.perf_counter()
            sync(target)
            found[name].append(time.perf_counter() - began)
    rows = []
    for name, values in found.items():
        rows += [
            Row(f"fsync of a {name} p50", statistics.median(values) * MS),
            Row(f"fsync of a {name} p99", percentile(values, 0.99) * MS),
        ]
    return rows


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"fsync": fsync, "start": startup, "memory": memory}
