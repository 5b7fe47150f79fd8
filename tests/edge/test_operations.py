"""OperationService on the wire: shown, watched, cancelled; short calls that go on after their caller's deadline."""

import threading
import time

import grpc
import pytest

from tests.edge.place import MIB
from tests.edge.wire import refusal, refused
from volgate.v1 import operation_pb2, volume_pb2
from volgate.v1.operation_pb2 import CancelOperationRequest, GetOperationRequest, ListOperationsRequest, WatchOperationRequest

UNKNOWN = f"operations/{'0' * 32}"


@pytest.fixture
def held(place):
    """A volume that an export keeps, and what lets it go."""
    made, stream = place.held()
    yield made, stream.cancel
    stream.cancel()


def get(place, name):
    return place.wire.operations.GetOperation(GetOperationRequest(name=name)).operation


def begin(place, request):
    """Begin an update that has to wait, and give up waiting; return the operation's name."""
    assert refused(place.wire.volumes.UpdateVolume, request, timeout=1.0).code == "DEADLINE_EXCEEDED"
    (waiting,) = place.wire.operations.ListOperations(ListOperationsRequest(unfinished_only=True)).operations
    return waiting.name


def test_an_operation_is_shown_as_its_call_answered(place):
    request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB)
    answer = place.wire.volumes.CreateVolume(request)
    assert get(place, answer.operation.name) == answer.operation
    assert answer.operation.created_at.ToNanoseconds() <= answer.operation.finished_at.ToNanoseconds()
    assert answer.operation.progress == 1


def test_a_failed_operation_tells_why(place):
    said = refused(place.wire.volumes.ExpandVolume, volume_pb2.ExpandVolumeRequest(name="pools/main/volumes/nobody", size_bytes=MIB))
    found = get(place, said.metadata["operation"])
    assert found.state == operation_pb2.OPERATION_STATE_FAILED
    assert (found.error_reason, found.error_message) == (said.reason, said.message)


@pytest.mark.parametrize("verb", ["GetOperation", "WatchOperation", "CancelOperation"])
def test_an_unknown_operation_is_not_found(place, verb):
    said = refused(getattr(place.wire.operations, verb), getattr(operation_pb2, f"{verb}Request")(name=UNKNOWN))
    assert (said.code, said.reason) == ("NOT_FOUND", "NOT_FOUND")


def test_a_watch_of_what_has_ended_answers_once(place):
    request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB)
    done = place.wire.volumes.CreateVolume(request).operation
    seen = list(place.wire.operations.WatchOperation(WatchOperationRequest(name=done.name), timeout=10))
    assert [answer.operation for answer in seen] == [done]


def test_a_short_call_goes_on_after_its_deadline_and_a_repeat_joins_it(place, held):
    made, release = held
    request = volume_pb2.UpdateVolumeRequest(name=made.name, labels={"a": "b"}, request_id=place.name("u"))
    began = time.monotonic()
    said = refused(place.wire.volumes.UpdateVolume, request, timeout=4.0)
    assert time.monotonic() - began < 4.0, "answered before the deadline, with the operation's name"
    assert (said.code, said.reason) == ("DEADLINE_EXCEEDED", "STILL_RUNNING") and said.retry_after
    waiting = get(place, said.metadata["operation"])
    assert waiting.state == operation_pb2.OPERATION_STATE_QUEUED
    listed = place.wire.operations.ListOperations(ListOperationsRequest(unfinished_only=True)).operations
    assert [o.name for o in listed] == [waiting.name]
    assert begin(place, request) == waiting.name, "joined, not begun anew"
    answers = []
    joiner = threading.Thread(target=lambda: answers.append(place.wire.volumes.UpdateVolume(request, timeout=20)))
    joiner.start()
    time.sleep(0.1)
    release()
    joiner.join(20)
    assert answers[0].operation.name == waiting.name and dict(answers[0].volume.labels) == {"a": "b"}
    replay = place.wire.volumes.UpdateVolume(request)
    assert replay.operation.name == waiting.name and replay.volume.labels == answers[0].volume.labels


def test_a_watch_sees_every_state_until_the_end(place, held):
    made, release = held
    request = volume_pb2.UpdateVolumeRequest(name=made.name, labels={"c": "d"})
    name = begin(place, request)
    watch = place.wire.operations.WatchOperation(WatchOperationRequest(name=name), timeout=20)
    assert next(watch).operation.state == operation_pb2.OPERATION_STATE_QUEUED
    release()
    states = [answer.operation.state for answer in watch]
    assert states[-1] == operation_pb2.OPERATION_STATE_DONE
    assert set(states) <= {operation_pb2.OPERATION_STATE_RUNNING, operation_pb2.OPERATION_STATE_DONE}


def test_a_waiting_operation_is_cancelled_and_undone(place, held):
    made, release = held
    request = volume_pb2.UpdateVolumeRequest(name=made.name, labels={"e": "f"})
    name = begin(place, request)
    call = place.wire.volumes.UpdateVolume.future(request, timeout=20)
    time.sleep(0.2)
    asked = place.wire.operations.CancelOperation(CancelOperationRequest(name=name)).operation
    assert asked.name == name
    release()
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    said = refusal(caught.value)
    assert (said.code, said.reason, said.metadata["operation"]) == ("CANCELLED", "CANCELLED", name)
    assert get(place, name).state == operation_pb2.OPERATION_STATE_CANCELLED
    assert not dict(place.wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=made.name, refresh=True)).volume.labels)


def test_cancelling_what_has_ended_changes_nothing(place):
    request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB)
    done = place.wire.volumes.CreateVolume(request).operation
    assert place.wire.operations.CancelOperation(CancelOperationRequest(name=done.name)).operation == done


def test_a_caller_that_goes_away_does_not_stop_the_work(place, held):
    made, release = held
    call = place.wire.volumes.UpdateVolume.future(volume_pb2.UpdateVolumeRequest(name=made.name, labels={"g": "h"}), timeout=20)
    time.sleep(0.2)
    call.cancel()
    release()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = place.wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=made.name)).volume
        if dict(found.labels) == {"g": "h"}:
            return
        time.sleep(0.02)
    raise AssertionError("the labels were not written")


@pytest.mark.parametrize("copies", [10])
def test_the_same_call_many_times_at_once_has_one_effect_and_one_answer(place, copies):
    request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB)
    calls = [place.wire.volumes.CreateVolume.future(request, timeout=20) for _ in range(copies)]
    assert len({call.result().volume.uid for call in calls}) == 1
