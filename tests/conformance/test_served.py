"""`volgate conform` judges pools of a running gateway: those of our own plugins pass, a bad one fails at its rule, and nothing stays."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.secured import secured
from tests.edge.server import Server
from tests.labs.third_party import installed
from volgate.backend.facets import FACET_NAMES

FOOTPRINT = 1 << 30
"""Bytes: no more than this is promised at any time for what the suite makes."""
OFF_THE_WIRE = {"Overlays", "Adopts", "Holders", "Fences", "FencesHosts", "Publishes"}
"""Facets that only the gateway itself calls."""
BAD, BROKEN = "losesthepageattheseam", "growth-keeps-what-is-there"
"""A kind, and the rule that its backend breaks."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with a pool in threads, one in a worker, and a third party's whose backend breaks a rule."""
    root = tmp_path_factory.mktemp("served")
    made = "".join(f'[pools.{name}]\nkind = "{kind}"\n{extra}\n' for name, kind, extra in _pools(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", installed(root / "site", "bad-data", "tests.conformance.judged.bad_data"))
        server = Server(root / "state", config=made).start(timeout=60)
    yield server
    assert server.stop() == 0


def _pools(root: Path) -> Iterator[tuple[str, str, str]]:
    for name in ("files", "bad"):
        (root / name).mkdir()
    yield "files", "directory", f'path = "{root}/files"'
    yield "simulated", "memory", f"capacity_bytes = {FOOTPRINT // 16}\noversubscription = 10.0"
    yield "bad", BAD, f'path = "{root}/bad"'


def conform(server: Server, *words: str, output: str = "json") -> subprocess.CompletedProcess[str]:
    """The command as its user gives it, in a process of its own."""
    command = [sys.executable, "-m", "volgate.cli", "--server", server.address, "--output", output, "conform", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env={**os.environ, "NO_COLOR": "1"})


def test_a_pool_is_judged_by_tls_too():
    with secured() as place:
        alice = place.pki.client("orchestrator", "judge", ("main",))
        words = ["--cert", str(alice.certificate), "--key", str(alice.key), "--ca", str(place.pki.root), "--server", place.address]
        command = [sys.executable, "-m", "volgate.cli", "conform", "--pool", "main", "--level", "1", "--output", "json", *words]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert json.loads(ran.stdout)["passed"]
        assert place.line("operation ended", method="CreateVolume", principal="orchestrator:judge")


def names(server: Server, pool: str) -> set[str]:
    """What the pool holds, from the storage."""
    with server.client() as client:
        return {volume.name for volume in client.list_volumes(f"pools/{pool}")}


@pytest.mark.parametrize("pool", ["files", "simulated"])
def test_a_pool_that_is_served_conforms_and_keeps_what_others_made(server, pool):
    most, done = [0], threading.Event()
    with server.client() as client:
        kept = client.create_volume(f"pools/{pool}", "kept", size_bytes=1 << 20)
        at_first = client.get_pool(f"pools/{pool}").provisioned_bytes

        def watch() -> None:
            while not done.wait(0.02):
                most.append(client.get_pool(f"pools/{pool}").provisioned_bytes - at_first)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            ran = conform(server, "--pool", pool, "--seed", "7")
        finally:
            done.set()
            thread.join()
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert client.get_volume(kept.name) == kept
        client.delete_volume(kept.name)
        facets = set(client.get_pool(f"pools/{pool}").capabilities)
    told = json.loads(ran.stdout)
    assert told["passed"] and told["over_the_wire"] and told["level"] == 3 and told["seed"] == 7
    assert {case["level"] for case in told["cases"] if case["outcome"] == "passed"} == {1, 2, 3}
    proven = {name for name, verdict in told["facets"].items() if verdict == "proven"}
    assert proven == facets - OFF_THE_WIRE
    assert set(told["facets"]) == set(FACET_NAMES)
    assert names(server, pool) == set()
    assert 0 < max(most) <= FOOTPRINT


def test_a_pool_that_breaks_a_rule_fails_at_it(server, tmp_path):
    report = tmp_path / "report.json"
    ran = conform(server, "--pool", "bad", "--level", "2", "--report", str(report), output="table")
    assert ran.returncode == 1
    assert f"FAILED {BROKEN}" in ran.stdout and ran.stdout.endswith("does NOT conform\n")
    told = json.loads(report.read_text())
    assert [case["rule"] for case in told["cases"] if case["outcome"] == "failed"] == [BROKEN]
    assert names(server, "bad") == set()


def test_a_pool_that_is_not_there_is_said_to_be_missing(server):
    ran = conform(server, "--pool", "nowhere")
    told = json.loads(ran.stderr)["error"]
    assert ran.returncode == told["exit"] == 3
    assert told["code"] == "NOT_FOUND" and "nowhere" in told["message"] and not ran.stdout
