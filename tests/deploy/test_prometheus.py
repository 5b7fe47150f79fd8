"""The rules and the dashboard against a real Prometheus that scrapes a real gateway: every query is read, and finds what it names."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.prometheus import RULES, Prometheus
from tests.edge.place import MIB
from tests.edge.wire import refused
from tests.telemetry.observed import Observed, observed
from volgate.v1 import pool_pb2, volume_pb2

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "deploy/grafana/volgate.json").read_text())
POOLS = """
[pools.sim]
kind = "memory"
capacity_bytes = 1_073_741_824
accept_loss = true
[pools.lost]
kind = "directory"
path = "{top}/lost/pool"
create = false
"""
OURS = re.compile(r"\b(?:volgate|rpc|process)_\w+|\b\w+:\w+:\w+|\bup\b")
RARE = re.compile(r'=~?"(?:INTERNAL|DATA_LOSS|UNAVAILABLE\|DEADLINE_EXCEEDED)"')
COMPARED = re.compile(r" (?:==|>=|>|<) [\d.]+(?= and |$)")


@dataclass
class Watched:
    """A gateway that was used, and the Prometheus that saw it."""

    gateway: Observed
    server: Prometheus

    def labels(self, metric: str) -> set[str]:
        """The labels of a metric's series."""
        return {label for series in self.server.series(metric) for label in series["metric"]}


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """Calls of every kind: answered, refused, and a worker that is killed below one."""
    with tempfile.TemporaryDirectory(prefix="vg-watched-", dir="/tmp") as folder:
        top = Path(folder)
        with observed(more=POOLS.format(top=top), top=top) as gateway, Prometheus(f"127.0.0.1:{gateway.port}") as server:
            seen = Watched(gateway, server)
            _work(gateway, "before")
            server.wait('volgate_pool_size_bytes{pool="sim"}')
            server.wait("volgate_operation_duration_seconds_count")
            os.kill(_worker(gateway), signal.SIGKILL)
            _work(gateway, "after")
            server.wait('volgate_worker_losses_total{pool="sim"} > 0')
            server.wait("count_over_time(volgate_worker_losses_total[1m]) > 3 and on () count_over_time(volgate_pool_size_bytes[1m]) > 3")
            yield seen


def _work(gateway: Observed, name: str) -> None:
    for pool in ("main", "sim"):
        request = volume_pb2.CreateVolumeRequest(pool=f"pools/{pool}", volume_id=name, size_bytes=MIB)
        gateway.wire.volumes.CreateVolume(request, timeout=60)
        gateway.wire.pools.GetPool(pool_pb2.GetPoolRequest(name=f"pools/{pool}"), timeout=30)
    refused(gateway.wire.pools.GetPool, pool_pb2.GetPoolRequest(name="pools/nobody"))
    refused(gateway.wire.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=f"pools/lost/volumes/{name}"))


def _worker(gateway: Observed) -> int:
    """The process that serves the pool `sim`."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents[int(folder.name)] = parent, (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
    family = [gateway.server.process.pid]
    for pid in family:
        family += [child for child, (parent, _) in parents.items() if parent == pid]
    (worker,) = [pid for pid in family if b"volgate_plugins.memory" in parents[pid][1]]
    return worker


def panels() -> list[tuple[str, str, str]]:
    """Title, expression and legend of every query of the dashboard, with Grafana's variables filled in."""
    found = []
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "5m")
            assert "$" not in expression, "every variable is one of the dashboard's"
            found.append((f"{panel['title']} {target['refId']}", expression, target["legendFormat"]))
    return found


PANELS = panels()
RULE_NAMES = re.findall(r"^ +- (?:alert|record): (\S+)$", RULES.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def rules(watched: Watched) -> dict[str, dict[str, Any]]:
    return {rule["name"]: rule for rule in watched.server.rules()}


def named_labels(expression: str) -> set[str]:
    """The labels that an expression chooses or groups by."""
    grouped = {label for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in group.split(", ") if label}
    return grouped | set(re.findall(r'[{,] ?(\w+)=?[=!~]+"', expression))


def offered_labels(watched: Watched, expression: str) -> set[str]:
    """The labels of all that an expression reads."""
    return set().union(*(watched.labels(name) for name in OURS.findall(re.sub(r"\((?:[a-z_]+, )*[a-z_]+\)", "", expression))))


def test_promtool_accepts_the_rules():
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULE_NAMES)} rules found" in done.stdout


def test_the_server_evaluates_every_rule(watched, rules):
    assert set(rules) == set(RULE_NAMES)
    deadline = time.monotonic() + 20
    while any(rule["health"] == "unknown" for rule in watched.server.rules()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [(rule["name"], rule.get("lastError")) for rule in watched.server.rules() if rule["health"] != "ok"] == []


@pytest.mark.parametrize("name", RULE_NAMES)
def test_a_rule_finds_what_it_reads(watched, rules, name):
    """Without its threshold, and with every status where it waits for a rare one, an alert gives series as a recording does."""
    expression = " ".join(rules[name]["query"].split())
    watched.server.series(expression)
    quiet = COMPARED.sub("", RARE.sub('!=""', expression)) if rules[name]["type"] == "alerting" else expression
    quiet = quiet.replace("volgate_lane_queued{", "volgate_lane_slots{") if name == "VolgateLaneFull" else quiet
    assert watched.server.wait(quiet, 20)
    told = named_labels(expression) | set(re.findall(r"\$labels\.(\w+)", json.dumps(rules[name].get("annotations", {}))))
    assert told <= offered_labels(watched, expression)


@pytest.mark.parametrize(("title", "expression", "legend"), PANELS, ids=[panel[0] for panel in PANELS])
def test_a_panel_shows_something(watched, title, expression, legend):
    found = watched.server.wait(expression, 20)
    labels = set.intersection(*(set(series["metric"]) for series in found))
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels, "the legend tells the series apart"
    assert named_labels(expression) <= offered_labels(watched, expression)


def test_every_metric_that_is_read_is_on_the_page(watched, rules):
    page = set(re.findall(r"^(\w+)(?:\{| )", watched.gateway.page(), re.MULTILINE))
    queries = [*(rule["query"] for rule in rules.values()), *(expression for _, expression, _ in PANELS)]
    read = {name for query in queries for name in OURS.findall(query) if name.startswith(("volgate_", "rpc_", "process_"))}
    assert read - {"rpc_grpc_status_code", "rpc_method"} <= page
    own = {name for name in page if name.startswith(("volgate_", "rpc_")) and not name.endswith(("_created", "_bucket", "_sum", "_count"))}
    assert own <= read, "what the gateway tells is shown"


def test_an_alert_says_which_pool_of_which_gateway_is_down(watched):
    watched.server.wait('ALERTS{alertname="VolgatePoolDown", pool="lost"}', 20)
    (alert,) = [found for found in watched.server.ask("alerts")["alerts"] if found["labels"]["alertname"] == "VolgatePoolDown"]
    assert alert["state"] == "pending", "two minutes have not passed"
    assert alert["annotations"]["summary"] == f"The pool lost of 127.0.0.1:{watched.gateway.port} is down."


def test_every_alert_leads_to_words_about_it(rules):
    for rule in rules.values():
        if rule["type"] == "alerting":
            assert {"summary", "description", "runbook_url"} == set(rule["annotations"]), rule["name"]
            assert rule["labels"]["severity"] in ("warning", "critical")
            page, _, place = rule["annotations"]["runbook_url"].removeprefix("file:///usr/share/doc/volgate/").partition("#")
            headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
            assert place in [heading.lower().replace(" ", "-") for heading in headings], rule["name"]


ROWS = ["Calls", "Operations", "Lanes", "Pools", "Workers", "Hosts"]


def test_the_dashboard_has_its_rows_and_lets_one_choose_a_gateway(watched):
    assert [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    source, instance = BOARD["templating"]["list"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    metric = re.fullmatch(r"label_values\((\w+), instance\)", instance["query"]["query"])
    assert instance["name"] == "instance" and metric
    assert watched.server.ask("label/instance/values", **{"match[]": metric[1]}) == [f"127.0.0.1:{watched.gateway.port}"]
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    taken = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24, "no panel lies on another"
