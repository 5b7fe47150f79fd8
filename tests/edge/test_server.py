"""The server around the services: socket, health, reflection, metadata, limits, a graceful stop."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.edge.place import MIB, Place, parts, running
from tests.edge.wire import refusal, refused
from volgate.v1 import operation_pb2, pool_pb2, volume_pb2

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {f"volgate.v1.{name}Service" for name in ("Pool", "Volume", "Snapshot", "Attachment", "Host", "Operation")}


@pytest.fixture
def own():
    """A gateway of this test's own, to be stopped by it."""
    with running() as made:
        yield made


def reflect(place, **question):
    stub = reflection_pb2_grpc.ServerReflectionStub(place.wire.channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=10)
    return answer


def test_the_socket_is_for_its_owner_and_group(place):
    facts = (place.state / "volgate.sock").stat()
    assert stat.S_ISSOCK(facts.st_mode) and stat.S_IMODE(facts.st_mode) == 0o660
    assert (facts.st_uid, facts.st_gid) == (os.geteuid(), os.getegid())


def test_health_is_told_for_the_server_and_each_service(place):
    for name in ("", *SERVICES):
        assert place.wire.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == SERVING
    assert refused(place.wire.health.Check, health_pb2.HealthCheckRequest(service="nobody")).code == "NOT_FOUND"


def test_reflection_lists_every_service_and_describes_it(place):
    listed = {service.name for service in reflect(place, list_services="").list_services_response.service}
    assert listed == SERVICES | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for name in SERVICES:
        assert reflect(place, file_containing_symbol=name).file_descriptor_response.file_descriptor_proto


def test_a_call_has_an_id_that_its_caller_may_choose(place):
    request = pool_pb2.ListPoolsRequest()
    ids = []
    for given in ("", "order-4711", "with a space", "x" * 129):
        metadata = [("x-request-id", given)] if given else []
        _, call = place.wire.pools.ListPools.with_call(request, metadata=metadata, timeout=10)
        ids.append(dict(call.trailing_metadata())["x-request-id"])
    assert ids[1] == "order-4711" and len(set(ids)) == 4 and len(ids[3]) == 32
    failed = refused(place.wire.pools.GetPool, pool_pb2.GetPoolRequest(name="pools/nobody"), metadata=[("x-request-id", "order-4712")])
    assert failed.trailers["x-request-id"] == "order-4712"
    deadline = time.monotonic() + 5
    while '"call": "order-4712"' not in (log := place.server.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)  # the line is written when the answer is on its way
    assert '"call": "order-4711"' in log and '"call": "order-4712"' in log


def test_a_message_above_the_limit_is_refused_by_its_size(place):
    labels = {f"k{number}": "v" * (1 << 16) for number in range(65)}
    said = refused(place.wire.volumes.UpdateVolume, volume_pb2.UpdateVolumeRequest(name="pools/main/volumes/a", labels=labels))
    assert said.code == "RESOURCE_EXHAUSTED" and str(4 << 20) in said.message


def test_the_longest_error_arrives_with_its_details(place):
    for text in ("x" * 4095, "ü" * 2000, "\U0001f984" * 1000, "/" + "a/" * 2000):
        header = volume_pb2.ImportHeader(pool="pools/main", volume_id="a", source_format=volume_pb2.VOLUME_FORMAT_RAW, path=text)
        said = refused(place.wire.volumes.ImportVolume, parts(header, b""))
        assert said.fields == ["header.path"] and said.reason, said


def test_many_holders_arrive_cut_with_their_number(place):
    made = place.volume(MIB)
    cut = place.snapshot(made)
    clones = [place.volume(0, source=cut.name, volume_id=f"{'long' * 14}{number:02}") for number in range(40)]
    said = refused(place.wire.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=made.name))
    assert said.reason == "IN_USE" and said.holders
    named = sum(1 for _, subject, _ in said.holders if subject)
    assert named >= 10
    if named < len(clones) + 1:
        assert "more" in said.holders[-1][2]


def raw_call(place, method, data, *, stream=False):
    kind = place.wire.channel.stream_unary if stream else place.wire.channel.unary_unary
    call = kind(method, request_serializer=None, response_deserializer=None)
    return refused(call, iter(data) if stream else data)


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_bytes_that_are_no_message_are_the_callers_fault(place, data):
    said = raw_call(place, "/volgate.v1.VolumeService/GetVolume", data)
    assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["request"])
    said = raw_call(place, "/volgate.v1.VolumeService/ImportVolume", [data], stream=True)
    assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["request"])


def test_an_unknown_method_is_unimplemented(place):
    for method in ("/volgate.v1.VolumeService/Format", "/volgate.v1.Nobody/GetVolume", "/"):
        assert raw_call(place, method, b"").code == "UNIMPLEMENTED"


def test_garbage_on_the_socket_disturbs_nobody(place):
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(512)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(place.state / "volgate.sock"))
            stranger.sendall(garbage)
    assert place.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=10).pools


def test_a_second_server_on_the_same_state_is_refused(place):
    command = [sys.executable, "-m", "volgate.cli", "serve", "--state-dir", str(place.state)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode and f"is used by process {place.server.process.pid}" in " ".join(second.stderr.split())
    assert place.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=10).pools


def test_a_stop_tells_health_ends_watches_and_lets_calls_finish(own):
    go_on, statuses, watched = threading.Event(), [], []
    upload = volume_pb2.ImportHeader(pool="pools/main", volume_id="late", source_format=volume_pb2.VOLUME_FORMAT_RAW)

    def slow():
        yield from parts(upload, bytes(2 * MIB) + b"end")
        go_on.wait(20)

    call = own.wire.volumes.ImportVolume.future(slow(), timeout=30)
    while not own.spool():
        time.sleep(0.01)

    def watch_health():
        try:
            statuses.extend(answer.status for answer in own.wire.health.Watch(health_pb2.HealthCheckRequest(), timeout=20))
        except grpc.RpcError as error:
            statuses.append(refusal(error).code)

    made, export = own.held()
    name = refused(own.wire.volumes.UpdateVolume, volume_pb2.UpdateVolumeRequest(name=made.name), timeout=4.0).metadata["operation"]

    def watch_operation():
        try:
            request = operation_pb2.WatchOperationRequest(name=name)
            watched.extend(answer.operation.state for answer in own.wire.operations.WatchOperation(request, timeout=20))
        except grpc.RpcError as error:
            watched.append((refusal(error).code, refusal(error).reason))

    threads = [threading.Thread(target=watch_health), threading.Thread(target=watch_operation)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    own.server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(5)
    assert statuses == [SERVING, NOT_SERVING, "UNAVAILABLE"]
    assert watched == [operation_pb2.OPERATION_STATE_QUEUED, ("UNAVAILABLE", "STOPPING")]
    with pytest.raises(grpc.RpcError):
        while True:  # calls on their way are still answered, until none has come for a moment
            own.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=1)
            time.sleep(0.3)
    assert sum(len(piece.chunk) for piece in export) == 32 * MIB, "what runs is finished"
    go_on.set()
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert refusal(caught.value).reason == "STOPPING", "what was not begun is refused, to be sent again"
    assert own.server.process.wait(20) == 0
    assert not (own.state / "volgate.sock").exists() and not own.spool()


def test_a_call_in_flight_finishes_while_the_server_stops(own):
    data = bytes(range(256)) * (64 << 12)
    header = volume_pb2.ImportHeader(pool="pools/main", volume_id="v", source_format=volume_pb2.VOLUME_FORMAT_RAW)
    call = own.wire.volumes.ImportVolume.future(parts(header, data), timeout=30)
    while not any(o.state for o in own.wire.operations.ListOperations(operation_pb2.ListOperationsRequest()).operations):
        time.sleep(0.002)
    own.server.process.send_signal(signal.SIGTERM)
    assert call.result().volume.size_bytes == len(data)
    assert own.server.process.wait(20) == 0


def test_a_server_takes_over_a_stale_socket_but_nothing_else(own):
    own.server.kill9()
    assert (own.state / "volgate.sock").exists()
    own.server.start()
    assert own.server.stop() == 0
    (own.state / "volgate.sock").write_text("mine")
    with pytest.raises(RuntimeError, match="is no socket"):
        own.server.start()
    assert (own.state / "volgate.sock").read_text() == "mine"
    (own.state / "volgate.sock").unlink()


def test_the_socket_has_the_configured_group_and_mode():
    top = Path(tempfile.mkdtemp(prefix="vg-edge-", dir="/tmp"))
    config = '[server]\nsocket_mode = "0600"\nsocket_group = "nogroup"\n'
    (top / "images").parent.mkdir(exist_ok=True)
    own = Place(top, config=config)
    own.server.start()
    try:
        facts = (own.state / "volgate.sock").stat()
        group = subprocess.run(["getent", "group", str(facts.st_gid)], capture_output=True, text=True, check=True).stdout
        assert stat.S_IMODE(facts.st_mode) == 0o600 and group.startswith("nogroup:")
    finally:
        own.server.stop()
        shutil.rmtree(top)
