"""A thousand hosts that register and send heartbeats to one controller, each by a certificate and connection of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.bench import MIB, Bench
from tests.bench.measure import MS, Row, percentile
from tests.bench.processes import family, running
from tests.edge.server import Server
from volgate.cli.authority import Authority
from volgate_client import Client

HOSTS = 1000
BEAT_SECONDS = 5.0
SAMPLE = 200
PAIRS = 6
CALM_SECONDS = 0.5
CONFIG = """
[server]
role = "controller"
listen = ["127.0.0.1:0"]
[tls]
certificate = "{pki}/controller-c1.crt"
key = "{pki}/controller-c1.key"
client_authority = "{pki}/authority.crt"
[limits]
host_dead_seconds = 60
"""


@contextlib.contextmanager
def _serving(bench: Bench, pki: Path) -> Iterator[tuple[Server, Client]]:
    Authority.create(pki, 10)
    Authority.load(pki).both("controller", "c1", ["127.0.0.1"], 5)
    with bench.serving("hosts", CONFIG.format(pki=pki)) as server, server.client() as client:
        client.create_volume("pools/default", "v", size_bytes=MIB)
        yield server, client


def _told(log: Path, key: str, timeout: float) -> list[dict[str, Any]]:
    """The lines that the hosts printed, once there are some with this key."""
    deadline = time.monotonic() + timeout
    while True:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")] if log.exists() else []
        if found := [line for line in lines if key in line]:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"the hosts told nothing of {key}: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _calm(client: Client) -> None:
    """Wait until the controller has looked at what all of them have, and for a round of its checks after that."""
    deadline = time.monotonic() + 120
    while any("compared with the record" in host.problem for host in client.list_hosts()):
        if time.monotonic() > deadline:
            raise TimeoutError("the hosts do not settle")
        time.sleep(0.5)
    time.sleep(2 * BEAT_SECONDS)


def _p50(bench: Bench, client: Client) -> float:
    took = list[float]()
    for _ in range(bench.scaled(SAMPLE, 20)):
        began = time.perf_counter()
        client.get_volume("pools/default/volumes/v")
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def hosts(bench: Bench) -> list[Row]:
    """Rows of registrations, of heartbeats, and of a GetVolume beside them."""
    count, top = bench.scaled(HOSTS, 20), bench.place("hosts-files")
    log = top / "crowd.log"
    with _serving(bench, top / "pki") as (server, client):
        line = next(line for line in server.log.read_text().splitlines() if '"listening"' in line)
        address = json.loads(line)["listen"][0]
        with running(["tests.bench.crowd", address, str(top / "pki"), str(count), str(BEAT_SECONDS)], log) as crowd:
            registered = _told(log, "registered", 180)[0]["registered"]
            _calm(client)
            ours, reference = list[float](), list[float]()
            for _ in range(PAIRS):
                time.sleep(CALM_SECONDS)
                ours.append(_p50(bench, client))
                os.kill(crowd.pid, signal.SIGSTOP)
                try:
                    time.sleep(CALM_SECONDS)
                    reference.append(_p50(bench, client))
                finally:
                    os.kill(crowd.pid, signal.SIGCONT)
            since = len(_told(log, "rate", 30))
            time.sleep(2 * BEAT_SECONDS)  # undisturbed
            beats = _told(log, "rate", 30)[since + 1 :]
            live = sum(host.live for host in client.list_hosts())
        if live != count or beats[-1]["failed"]:
            raise RuntimeError(f"{live} of {count} hosts are live, {beats[-1]['failed']} heartbeats failed")
        assert server.process
        weight = sum(family(server.process.pid).values()) / MIB
    ratio = statistics.median(our / their for our, their in zip(ours[1:], reference[1:], strict=True))
    return [
        Row("registration of a host", registered / count * MS),
        Row("heartbeats in a second", statistics.median(beat["rate"] for beat in beats), count / BEAT_SECONDS),
        Row("heartbeat p50", statistics.median(beat["p50"] for beat in beats) * MS),
        Row("heartbeat p99", percentile([beat["p99"] for beat in beats], 0.5) * MS),
        Row("get p50 beside heartbeats", statistics.median(ours[1:]) * MS, statistics.median(reference[1:]) * MS, ratio),
        Row("PSS with 1,000 hosts", weight),
    ]


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"hosts": hosts}
