"""A gateway whose spans, metrics and logs are collected."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.edge.place import Place
from tests.edge.server import Server
from tests.edge.wire import Wire
from tests.telemetry.receiver import Receiver, Span

__all__ = ["Observed", "free_port", "observed", "show", "traceparent"]

CONFIG = """
[limits]
scan_seconds = 3600
check_seconds = 3600
[telemetry]
otlp_endpoint = "{endpoint}"
prometheus_listen = "127.0.0.1:{port}"
[hosts.lab]
uri = "{uri}"
[pools.main]
kind = "directory"
path = "{top}/main"
"""


class Observed(Place):
    """A place with a receiver."""

    def __init__(self, top: Path, receiver: Receiver, uri: str, more: str = "") -> None:
        self.top, self.state, self.pool = top, top / "state", top / "main"
        self.receiver = receiver
        self.port = free_port()
        config = CONFIG.format(endpoint=receiver.endpoint, port=self.port, uri=uri, top=top) + more
        self.server = Server(self.state, config=config)
        self.wire = Wire(self.server.address)
        self._numbers = iter(range(1, 1000))

    def page(self) -> str:
        """The Prometheus page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def log(self) -> list[dict]:
        """Every log line; one that is no JSON fails."""
        return [json.loads(line) for line in self.server.log.read_text().rpartition("\n")[0].splitlines()]


@contextmanager
def observed(uri: str = "test:///default", more: str = "", top: Path | None = None, **env: str) -> Iterator[Observed]:
    """Spans are sent every 50 ms instead of every 5 s; everything else is as in production."""
    made = top or Path(tempfile.mkdtemp(prefix="vg-seen-", dir="/tmp"))
    before = dict(os.environ)
    os.environ.update({"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "500", **env})
    try:
        with Receiver() as receiver:
            place = Observed(made, receiver, uri, more)
            try:
                place.server.start()
                yield place
            finally:
                place.wire.channel.close()
                place.server.stop()
    finally:
        os.environ.clear()
        os.environ.update(before)
        if top is None:
            shutil.rmtree(made)


def traceparent() -> tuple[str, str, str]:
    """A caller's context: the header, the trace id, the caller's span id."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace}-{span}-01", trace, span


def show(spans: list[Span], parent: str, depth: int = 0) -> list[str]:
    """A trace as an indented tree, children in the order of their beginning."""
    lines = []
    for span in spans:
        if span.parent == parent:
            lines += ["  " * depth + span.name, *show(spans, span.id, depth + 1)]
    return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
