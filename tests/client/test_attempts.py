"""What is repeated, how, and until when; with a server that fails as it is told."""

import threading
import time

import grpc
import pytest

from tests.client.faulty import Faulty, status
from volgate_client import AsyncClient, Client, errors

GONE = status(grpc.StatusCode.UNAVAILABLE)
BUSY = status(grpc.StatusCode.UNAVAILABLE, "BUSY", retry=0.3)
DOUBT = status(grpc.StatusCode.ABORTED, "IN_DOUBT", retry=0.01)


@pytest.fixture
def faulty(tmp_path):
    def make(*failures, slow=0.0):
        return Faulty(tmp_path / "s", list(failures), slow)

    return make


def test_safe_failures_are_repeated_with_the_same_request_id(faulty):
    with faulty(GONE, DOUBT, GONE) as server, Client(server.address, timeout=10) as client:
        assert client.create_volume("pools/p", "v").name == "pools/p/volumes/v"
    identifiers = {request.request_id for request in server.requests}
    assert len(server.requests) == 4
    assert len(identifiers) == 1 and identifiers != {""}


async def test_safe_failures_are_repeated_by_the_async_client_too(faulty):
    with faulty(GONE, DOUBT) as server:
        async with AsyncClient(server.address, timeout=10) as client:
            assert (await client.create_volume("pools/p", "v", request_id="mine")).name == "pools/p/volumes/v"
    assert [request.request_id for request in server.requests] == ["mine"] * 3


def test_a_call_that_a_closing_gateway_cancels_is_repeated(faulty):
    with faulty(status(grpc.StatusCode.CANCELLED)) as server, Client(server.address, timeout=10) as client:
        client.create_volume("pools/p", "v")
    assert len(server.requests) == 2


def test_a_call_whose_client_is_closed_ends_as_cancelled(faulty):
    with faulty(*[BUSY] * 50, slow=5.0) as server:
        client = Client(server.address, timeout=10)
        threading.Timer(0.3, client.close).start()
        began = time.monotonic()
        with pytest.raises(errors.Cancelled):
            client.create_volume("pools/p", "v")
        assert time.monotonic() - began < 4.0
        with pytest.raises(errors.Cancelled, match="closed"):
            client.create_volume("pools/p", "w")
    assert len(server.requests) == 1


def test_two_calls_with_one_message_have_two_request_ids(faulty):
    from volgate.v1 import volume_pb2

    request = volume_pb2.CreateVolumeRequest(pool="pools/p", volume_id="v")
    with faulty() as server, Client(server.address) as client:
        client.call(client.volumes.CreateVolume, request)
        client.call(client.volumes.CreateVolume, request)
    assert request.request_id == "", "the caller's message stays as it was"
    assert len({seen.request_id for seen in server.requests}) == 2


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (status(grpc.StatusCode.FAILED_PRECONDITION, "IN_USE"), errors.InUse),
        (status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), errors.InvalidRequest),
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_SPACE"), errors.OutOfSpace),
        (status(grpc.StatusCode.INTERNAL, "BUG"), errors.Bug),
        (status(grpc.StatusCode.ABORTED, "DOMAIN_BUSY"), errors.InDoubt),
        (status(grpc.StatusCode.UNAVAILABLE, "STOPPING"), errors.Unavailable),
        (status(grpc.StatusCode.UNKNOWN), errors.VolgateError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_gateway_does_not_call_safe_is_never_repeated(faulty, failure, kind):
    with faulty(failure) as server, Client(server.address, timeout=10) as client, pytest.raises(errors.VolgateError) as raised:
        client.create_volume("pools/p", "v")
    assert type(raised.value) is kind
    assert len(server.requests) == 1


def test_the_gateways_retry_delay_is_kept(faulty):
    with faulty(BUSY) as server, Client(server.address, timeout=10) as client:
        began = time.monotonic()
        client.create_volume("pools/p", "v")
        assert time.monotonic() - began >= 0.3
    assert len(server.requests) == 2


def test_pauses_grow_and_end_before_the_deadline(faulty):
    told = []
    with faulty(*[GONE] * 100) as server, Client(server.address, timeout=1.0, retrying=told.append) as client:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable) as raised:
            client.create_volume("pools/p", "v")
        assert time.monotonic() - began < 3.0
    assert 2 <= len(server.requests) <= 12, "50 ms doubled each time"
    assert len(told) == len(server.requests) - 1
    assert raised.value.message.startswith(f"no gateway answers at {server.address}")


def test_a_rich_error_is_read_whole(faulty):
    failure = status(grpc.StatusCode.ABORTED, "IN_DOUBT", retry=2.5, message="not known yet")
    with faulty(failure) as server, Client(server.address, timeout=2.0) as client, pytest.raises(errors.InDoubt) as raised:
        client.create_volume("pools/p", "v")
    error = raised.value
    assert (error.code, error.reason, error.message, error.operation) == ("ABORTED", "IN_DOUBT", "not known yet", "operations/1")
    assert (error.retryable, error.retry_after, str(error)) == (True, 2.5, "not known yet")


def test_the_trace_context_of_the_caller_goes_along(faulty):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    with faulty() as server, Client(server.address) as client:
        with TracerProvider().get_tracer("test").start_as_current_span("caller") as span:
            client.create_volume("pools/p", "v")
        client.create_volume("pools/p", "w")
    context = span.get_span_context()
    expected = f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
    assert server.metadata[0]["traceparent"].rpartition("-")[0] == expected
    assert "traceparent" not in server.metadata[1]


def test_the_trace_context_of_the_environment_goes_along(faulty, monkeypatch):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    monkeypatch.setenv("TRACEPARENT", parent)
    monkeypatch.setenv("TRACESTATE", "vendor=1")
    with faulty() as server, Client(server.address) as client:
        client.create_volume("pools/p", "v")
        monkeypatch.setenv("TRACEPARENT", "nonsense\n")
        client.create_volume("pools/p", "w")
    assert (server.metadata[0]["traceparent"], server.metadata[0]["tracestate"]) == (parent, "vendor=1")
    assert "traceparent" not in server.metadata[1]
