"""One call seen from outside: its trace, its metrics, its log lines."""

import re
import time

import pytest

from tests.edge.place import MIB
from tests.edge.wire import refused
from tests.telemetry.observed import observed, show, traceparent
from volgate.v1 import pool_pb2, volume_pb2


@pytest.fixture(scope="module")
def place():
    with observed() as made:
        yield made


def create(place, **more):
    header, trace, caller = traceparent()
    request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB)
    answer = place.wire.volumes.CreateVolume(request, metadata=[("traceparent", header), *more.items()], timeout=30)
    return answer, trace, caller


def test_a_creation_is_one_trace_from_the_caller_to_the_plugin(place):
    answer, trace, caller = create(place)
    spans = place.receiver.trace(trace, until="volgate.v1.VolumeService", caller=caller)
    lines = show(spans, caller)
    assert lines[0] == "volgate.v1.VolumeService/CreateVolume"
    assert lines[1] == "  operation CreateVolume"
    assert "    step create" in lines
    assert lines[lines.index("    step create") + 1] == "      plugin create_volume"
    assert len(lines) == len(spans), "every span is below the caller's"
    by_name = {span.name: span for span in spans}
    rpc, operation = by_name["volgate.v1.VolumeService/CreateVolume"], by_name["operation CreateVolume"]
    assert (rpc.attributes["rpc.system"], rpc.attributes["rpc.method"], rpc.attributes["rpc.grpc.status_code"]) == (
        "grpc",
        "CreateVolume",
        "OK",
    )
    assert operation.attributes["volgate.operation"] == answer.operation.name.removeprefix("operations/")
    assert operation.attributes["volgate.target"] == answer.volume.name
    assert by_name["plugin create_volume"].attributes["volgate.pool"] == "main"
    assert {span.name for span in spans if span.failed} <= {"plugin get_volume"}, "the name was free, which a look at it tells"
    parents = {span.id: span for span in spans}
    for span in spans:
        assert span.ended >= span.began > 0
        assert span.parent == caller or parents[span.parent].began <= span.began


def test_a_failure_is_told_by_its_reason_in_every_span_that_it_passes(place):
    header, trace, caller = traceparent()
    request = volume_pb2.ExpandVolumeRequest(name="pools/main/volumes/nobody", size_bytes=MIB)
    said = refused(place.wire.volumes.ExpandVolume, request, metadata=[("traceparent", header)])
    failed = {s.name: s.attributes["volgate.reason"] for s in place.receiver.trace(trace, until="volgate.v1", caller=caller) if s.failed}
    assert failed["operation ExpandVolume"] == failed["volgate.v1.VolumeService/ExpandVolume"] == said.reason == "NOT_FOUND"


def test_a_caller_without_a_context_begins_a_trace(place):
    place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main"), metadata=[("x-request-id", "alone")], timeout=30)
    deadline = time.monotonic() + 10
    while not (found := [span for span in place.receiver.spans if span.attributes.get("volgate.call") == "alone"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not found[0].parent and len(found[0].trace) == 32


def test_log_lines_carry_the_trace_and_the_call(place):
    answer, trace, caller = create(place, **{"x-request-id": "logged"})
    place.receiver.trace(trace, until="volgate.v1", caller=caller)
    deadline = time.monotonic() + 5
    while len(mine := [line for line in place.log() if line.get("trace_id") == trace]) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    events = {line["event"]: line for line in mine}
    assert events["call"]["method"] == "volgate.v1.VolumeService/CreateVolume" and events["call"]["code"] == "OK"
    assert f"operations/{events['operation ended']['operation']}" == answer.operation.name
    spans = {span.id: span.name for span in place.receiver.trace(trace, until="volgate.v1", caller=caller)}
    assert spans[events["call"]["span_id"]] == "volgate.v1.VolumeService/CreateVolume"
    assert spans[events["operation ended"]["span_id"]] == "operation CreateVolume"
    assert {line["call"] for line in mine} == {"logged"}
    assert all(line["level"] and line["timestamp"].endswith("Z") for line in place.log())


METRICS = {
    "rpc_server_duration_seconds_count": {"rpc_method": "volgate.v1.VolumeService/CreateVolume", "rpc_grpc_status_code": "OK"},
    "volgate_operation_duration_seconds_count": {"method": "CreateVolume", "outcome": "ok"},
    "volgate_step_duration_seconds_count": {"method": "CreateVolume", "step": "create", "outcome": "done"},
    "volgate_lane_slots": {"lane": "main"},
    "volgate_lane_running": {"lane": "main"},
    "volgate_lane_queued": {"lane": "main"},
    "volgate_lane_refused_total": {"lane": "main"},
    "volgate_operation_unfinished": {},
    "volgate_operation_doubtful": {},
    "volgate_operation_oldest_seconds": {},
    "volgate_pool_health": {"pool": "main"},
    "volgate_worker_stuck": {"pool": "main"},
}


def values(page, name, **labels):
    """The values of a metric's series with these labels."""
    found = []
    for line in page.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? ([0-9.e+-]+|NaN|\+Inf)", line)
        if match and match[1] == name:
            have = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= have.items():
                found.append(float(match[3]))
    return found


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_on_the_page(place, name):
    create(place)
    assert values(place.page(), name, **METRICS[name]), place.page()


def test_every_lane_is_on_the_page(place):
    page = place.page()
    for lane in ("main", "operations", "operations main", "reads", "reads pools/main", "reads hosts/lab"):
        (slots,) = values(page, "volgate_lane_slots", lane=lane)
        (running,) = values(page, "volgate_lane_running", lane=lane)
        assert slots >= 1 and 0 <= running <= slots


def test_the_space_of_a_pool_is_on_the_page_when_it_was_scanned(place):
    deadline = time.monotonic() + 20
    while not (size := values(place.page(), "volgate_pool_size_bytes", pool="main")):
        assert time.monotonic() < deadline, "the gateway's start scans it"
        time.sleep(0.05)
    shown = place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main"), timeout=30).pool
    page = place.page()
    assert size == [shown.total_bytes]
    for name, said in (("provisioned", shown.provisioned_bytes), ("limit", shown.provisioned_limit_bytes)):
        assert values(page, f"volgate_pool_{name}_bytes", pool="main") == [said]
    assert 0 < values(page, "volgate_pool_free_bytes", pool="main")[0] <= size[0]


def test_a_pool_that_is_down_says_so_on_the_page(place):
    (place.pool / ".volgate-pool.json").rename(place.top / "marker")
    try:
        place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main"), timeout=30)
        assert values(place.page(), "volgate_pool_health", pool="main") == [0]
    finally:
        (place.top / "marker").rename(place.pool / ".volgate-pool.json")
    place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/main"), timeout=30)
    assert values(place.page(), "volgate_pool_health", pool="main") == [2]


def test_counts_grow_by_what_was_called(place):
    def counted():
        page = place.page()
        return [sum(values(page, name, **labels)) for name, labels in METRICS.items() if name.endswith("_count")]

    before = counted()
    for _ in range(3):
        create(place)
    deadline = time.monotonic() + 5
    while [after - then for after, then in zip(counted(), before, strict=True)] != [3, 3, 3]:
        assert time.monotonic() < deadline, (before, counted())
        time.sleep(0.02)


def test_every_call_is_measured_with_its_outcome(place):
    refused(place.wire.pools.GetPool, pool_pb2.GetPoolRequest(name="pools/nobody"))
    labels = {"rpc_method": "volgate.v1.PoolService/GetPool", "rpc_grpc_status_code": "NOT_FOUND"}
    deadline = time.monotonic() + 5
    while not values(place.page(), "rpc_server_duration_seconds_count", **labels):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_durations_have_buckets_that_tell_milliseconds_apart(place):
    create(place)
    limits = {float(text) for text in re.findall(r'rpc_server_duration_seconds_bucket\{.*?le="([0-9.]+)"', place.page())}
    assert {0.001, 0.005, 0.01, 0.1, 1.0} <= limits


def test_metrics_go_to_the_collector_too(place):
    create(place)
    deadline = time.monotonic() + 10
    while (
        not {"rpc.server.duration", "volgate.operation.duration", "volgate.step.duration", "volgate.lane.slots"} <= place.receiver.metrics
    ):
        assert time.monotonic() < deadline, place.receiver.metrics
        time.sleep(0.05)
