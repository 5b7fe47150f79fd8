"""Plugins are told who calls by TLS: before a mutation, before a plan, and after the end."""

import json
import time

import pytest

from tests.edge.place import MIB
from tests.edge.plugin import plugin
from tests.edge.secured import secured
from tests.edge.wire import refused
from volgate.v1 import operation_pb2, pool_pb2, volume_pb2

CODE = """
import json
from dataclasses import asdict
from pathlib import Path

from volgate.backend import AdmitRequest, FinishedRecord, hookimpl
from volgate.errors import Denied

HERE = Path(__file__).parent


@hookimpl
def volgate_admit(request: AdmitRequest) -> None:
    if request.principal == "operator:banned":
        raise Denied(f"{request.principal} is banned", reason="POLICY")


@hookimpl
def volgate_finished(record: FinishedRecord) -> None:
    with (HERE / "finished.jsonl").open("a") as file:
        file.write(json.dumps(asdict(record)) + "\\n")
"""


@pytest.fixture(scope="module")
def told():
    with plugin("vgtest_told", CODE) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with secured() as place:
            yield place, folder
            assert place.server.stop() == 0


def records(folder, count: int) -> list[dict]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [path.read_text().splitlines() for path in folder.rglob("finished.jsonl")]
        if found and len(found[0]) >= count:
            return [json.loads(line) for line in found[0]]
        time.sleep(0.05)
    raise AssertionError("the plugin was not told")


def test_a_policy_sees_the_principal_of_a_mutation_and_of_a_plan(told):
    place, _ = told
    for name, code in (("banned", "PERMISSION_DENIED"), ("olga", "")):
        wire = place.by("operator", name)
        for plan in (True, False):
            request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB, validate_only=plan)
            if code:
                assert refused(wire.volumes.CreateVolume, request).reason == "POLICY"
            else:
                wire.volumes.CreateVolume(request, timeout=30)


def test_each_end_of_a_mutation_is_told_with_who_what_uid_and_outcome(told):
    place, folder = told
    nova, alice = place.by("orchestrator", "nova", ("main",), ("lab",)), place.by("admin", "alice")
    made = nova.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id="told", size_bytes=MIB), timeout=30).volume
    nobody = "pools/main/volumes/nobody"
    assert refused(nova.volumes.ExpandVolume, volume_pb2.ExpandVolumeRequest(name=nobody, size_bytes=MIB)).code == "NOT_FOUND"
    alice.pools.DrainPool(pool_pb2.DrainPoolRequest(name="pools/main", resume=True))
    held, stream = place.held()
    assert refused(nova.volumes.UpdateVolume, volume_pb2.UpdateVolumeRequest(name=held.name), timeout=1).code == "DEADLINE_EXCEEDED"
    (waiting,) = place.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(unfinished_only=True)).operations
    alice.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=waiting.name))
    stream.cancel()
    list(place.wire.operations.WatchOperation(operation_pb2.WatchOperationRequest(name=waiting.name), timeout=30))
    wanted = {
        ("CreateVolume", made.name, made.uid, "orchestrator:nova", "ok"),
        ("ExpandVolume", nobody, "", "orchestrator:nova", "NOT_FOUND"),
        ("DrainPool", "pools/main", "", "admin:alice", "ok"),
        ("CancelOperation", held.name, "", "admin:alice", "ok"),
        ("UpdateVolume", held.name, "", "orchestrator:nova", "CANCELLED"),
    }
    deadline, seen = time.monotonic() + 20, set[tuple]()
    while not wanted <= seen and time.monotonic() < deadline:
        seen = {(r["method"], r["name"], r["uid"], r["principal"], r["outcome"]) for r in records(folder, len(wanted))}
    assert wanted <= seen, wanted - seen
