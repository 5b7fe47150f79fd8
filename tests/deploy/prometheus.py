"""A real Prometheus on the loopback, with the shipped rules, that scrapes a real gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tests.telemetry.observed import free_port

__all__ = ["RULES", "Prometheus"]

RULES = Path(__file__).parents[2] / "deploy/prometheus/volgate.rules.yml"
CONFIG = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: volgate
    static_configs: [{{targets: ["{target}"]}}]
"""
_STARTER = ThreadPoolExecutor(1)  # a parent's death is that of the thread which started the child: this one lives as long as the run


class Prometheus:
    """`with Prometheus("127.0.0.1:9464") as server`: what it keeps lies in a folder of its own and goes with it."""

    def __init__(self, target: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vg-prometheus-", dir="/tmp"))
        self.address = f"127.0.0.1:{free_port()}"
        (self.folder / "prometheus.yml").write_text(CONFIG.format(rules=RULES, target=target))
        self.log = self.folder / "log"

    def __enter__(self) -> Self:
        command = ["setpriv", "--pdeathsig", "KILL", "prometheus", f"--config.file={self.folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={self.folder}/data", f"--web.listen-address={self.address}"]
        with self.log.open("wb") as log:
            self.process = _STARTER.submit(subprocess.Popen, command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).result()
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            try:
                urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5).close()
                return self
            except OSError:
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)
        shutil.rmtree(self.folder)

    def ask(self, path: str, **arguments: str) -> Any:
        """The data of an answer of the HTTP API; an error is an AssertionError with the server's words."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from error

    def series(self, query: str) -> list[dict[str, Any]]:
        """What an expression gives now."""
        found = self.ask("query", query=query)
        assert found["resultType"] == "vector", query
        return list(found["result"])

    def wait(self, query: str, seconds: float = 40.0) -> list[dict[str, Any]]:
        """What an expression gives, once it gives something."""
        deadline = time.monotonic() + seconds
        while not (found := self.series(query)):
            assert time.monotonic() < deadline, f"{query}: no series; {self.ask('targets')}"
            time.sleep(0.2)
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule as the server read it."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
