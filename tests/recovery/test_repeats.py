"""The journal's rules: one effect and one answer however often a call is made, and no late repeat harms what came after it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.recovery.calls import POOL, Call, Caller, Refused, snapshot_name, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import stray
from tests.soaking import count
from volgate.settings import Limits
from volgate.v1 import operation_pb2, volume_pb2

MIB = 1 << 20
VERBS = ("create", "delete", "expand", "update", "revert", "adopt", "import", "snapshot", "unsnapshot")
TIMES = count(10, soak=50)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("r")
    with Daemon(base) as running:
        yield running
        assert stray(running.pool, running.state / "spool") == []


@pytest.fixture
def caller(shared: Daemon) -> Iterator[Caller]:
    with shared.caller() as one:
        yield one


def fresh(prefix: str = "v") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def create(name: str, **fields: object) -> Call:
    return Call("create", {"pool": POOL, "volume_id": name, "size_bytes": MIB, "request_id": fresh("r"), **fields})


def snapshot(name: str, cut: str = "s", **fields: object) -> Call:
    return Call("snapshot", {"volume": volume_name(name), "snapshot_id": cut, "request_id": fresh("r"), **fields})


def prepared(verb: str, daemon: Daemon, caller: Caller) -> Call:
    """Make what the verb works on; return the call."""
    name, rid = fresh(), {"request_id": fresh("r")}
    match verb:
        case "create":
            return create(name)
        case "adopt":
            make_image(daemon.pool / f"{name}.qcow2", MIB, 7)
            return Call(
                "adopt", {"pool": POOL, "locator": f"{name}.qcow2", "volume_id": name, "format": volume_pb2.VOLUME_FORMAT_QCOW2, **rid}
            )
        case "import":
            image = make_image(daemon.images / f"{name}.qcow2", MIB, 7)
            return Call(
                "import", {"pool": POOL, "volume_id": name, "path": str(image), "source_format": volume_pb2.VOLUME_FORMAT_QCOW2, **rid}
            )
    caller(create(name))
    full = volume_name(name)
    if verb == "snapshot":
        return snapshot(name)
    if verb in ("delete", "expand", "update"):
        more = {"delete": {}, "expand": {"size_bytes": 2 * MIB}, "update": {"labels": {"a": "b"}}}[verb]
        return Call(verb, {"name": full, **more, **rid})
    caller(snapshot(name))
    if verb == "revert":
        write_pattern(daemon, name, 9)
        return Call("revert", {"name": full, "snapshot": "s", **rid})
    return Call("unsnapshot", {"name": snapshot_name(name, "s"), **rid})


def done_by(caller: Caller, call: Call) -> int:
    """How many operations the journal holds for a call's request id."""
    return sum(row.request_id == call.fields["request_id"] for row in caller.list_operations())


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_made_again_and_again_has_one_effect_and_one_answer(shared, caller, verb):
    call = prepared(verb, shared, caller)
    answers = [caller(call) for _ in range(TIMES)]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].operation.state == operation_pb2.OPERATION_STATE_DONE
    assert done_by(caller, call) == 1
    caller.settle()
    assert stray(shared.pool) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_made_many_times_at_once_has_one_effect_and_one_answer(shared, caller, verb):
    call = prepared(verb, shared, caller)
    gate = threading.Barrier(TIMES)

    def make(_: int) -> object:
        with shared.caller() as own:
            gate.wait(30)
            return own(call)

    with ThreadPoolExecutor(TIMES) as threads:
        answers = list(threads.map(make, range(TIMES)))
    assert all(answer == answers[0] for answer in answers)
    assert done_by(caller, call) == 1
    caller.settle()
    assert stray(shared.pool) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_request_id_says_one_thing_only(shared, caller, verb):
    call = prepared(verb, shared, caller)
    caller(call)
    other = create(fresh(), request_id=call.fields["request_id"])
    with pytest.raises(Refused) as refused:
        caller(other)
    assert (refused.value.code, refused.value.reason, refused.value.field) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "request_id")


def test_a_request_id_of_a_failed_call_says_one_thing_too(caller):
    name = fresh()
    call = Call("expand", {"name": volume_name(name), "size_bytes": 2 * MIB, "request_id": fresh("r")})
    with pytest.raises(Refused, match="NOT_FOUND"):
        caller(call)
    with pytest.raises(Refused, match="INVALID_ARGUMENT"):
        caller(create(name, request_id=call.fields["request_id"]))
    caller(create(name))
    assert caller(call).volume.size_bytes == 2 * MIB  # a failure is no answer to keep: the same call may succeed later


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"size_bytes": 2 * MIB}, "size_bytes is 1048576, asked 2097152"),
        ({"format": volume_pb2.VOLUME_FORMAT_RAW}, "format is qcow2, asked raw"),
        ({"provisioning": volume_pb2.PROVISIONING_THICK}, "provisioning is thin, asked thick"),
    ],
)
def test_a_creation_that_conflicts_names_the_difference(caller, difference, named):
    call = create(fresh())
    caller(call)
    with pytest.raises(Refused) as refused:
        caller(create(call.fields["volume_id"], **difference))
    assert refused.value.code == "ALREADY_EXISTS"
    assert named in refused.value.message
    assert caller(create(call.fields["volume_id"])).volume.uid == caller.volume(call.fields["volume_id"]).uid


def test_a_clone_or_a_snapshot_that_conflicts_names_the_difference(caller):
    source, clone = fresh(), fresh("c")
    caller(create(source))
    caller(snapshot(source))
    caller(create(clone, source=snapshot_name(source, "s"), size_bytes=0))
    for call, named in (
        (create(clone, source=volume_name(source), size_bytes=0), "source is"),
        (snapshot(source, labels={"kept": "yes"}), "labels is {}"),
    ):
        with pytest.raises(Refused) as refused:
            caller(call)
        assert refused.value.code == "ALREADY_EXISTS"
        assert named in refused.value.message


@pytest.mark.parametrize("verb", ["import", "adopt"])
def test_what_was_filled_from_elsewhere_is_not_filled_again(shared, caller, verb):
    call = prepared(verb, shared, caller)
    caller(call)
    if verb == "adopt":
        make_image(shared.pool / call.fields["locator"], MIB, 8)
    with pytest.raises(Refused) as refused:
        caller(Call(verb, {**call.fields, "request_id": fresh("r")}))
    assert refused.value.code == "ALREADY_EXISTS"
    if verb == "adopt":
        (shared.pool / call.fields["locator"]).unlink()


def test_a_late_repeat_of_a_delete_spares_the_newer_volume(caller):
    name = fresh()
    old = caller(create(name)).volume
    call = Call("delete", {"name": old.name, "uid": old.uid, "request_id": fresh("r")})
    caller(call)
    new = caller(create(name)).volume
    assert new.uid != old.uid
    caller(call)  # answered from the record
    caller(create(name))
    with pytest.raises(Refused) as refused:
        caller(Call("delete", {"name": old.name, "uid": old.uid, "request_id": fresh("r")}))
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "UID_MISMATCH")
    assert caller.volume(name, refresh=True).uid == new.uid


def test_late_repeats_of_deletes_that_ran_at_once_under_two_request_ids_spare_the_newer_volume(shared, caller):
    name = fresh()
    caller(create(name))
    calls = [Call("delete", {"name": volume_name(name), "request_id": fresh("r")}) for _ in range(8)]
    gate = threading.Barrier(len(calls))

    def make(call: Call) -> object:
        with shared.caller() as own:
            gate.wait(30)
            return own(call)

    with ThreadPoolExecutor(len(calls)) as threads:
        list(threads.map(make, calls))
    new = caller(create(name)).volume
    for call in calls:
        caller(call)
    assert caller.volume(name, refresh=True).uid == new.uid


def test_a_late_repeat_of_a_revert_spares_what_was_written_since(shared, caller):
    name = fresh()
    old = caller(create(name)).volume
    caller(snapshot(name))
    revert = Call("revert", {"name": old.name, "snapshot": "s", "uid": old.uid, "request_id": fresh("r")})
    caller(revert)
    caller.settle()
    write_pattern(shared, name, 0x5A)
    caller(revert)
    assert caller.content(name)[:4] == b"\x5a" * 4
    caller(Call("unsnapshot", {"name": snapshot_name(name, "s"), "request_id": fresh("r")}))
    caller(Call("delete", {"name": old.name, "request_id": fresh("r")}))
    caller(create(name))
    caller(snapshot(name))
    caller.settle()
    write_pattern(shared, name, 0x5B)
    caller(revert)
    with pytest.raises(Refused, match="has uid"):
        caller(Call("revert", {**revert.fields, "request_id": fresh("r")}))
    assert caller.content(name)[:4] == b"\x5b" * 4


def test_a_late_repeat_of_a_snapshots_deletion_spares_the_newer_snapshot(caller):
    name = fresh()
    caller(create(name))
    old = caller(snapshot(name)).snapshot
    call = Call("unsnapshot", {"name": old.name, "uid": old.uid, "request_id": fresh("r")})
    caller(call)
    new = caller(snapshot(name)).snapshot
    caller(call)
    with pytest.raises(Refused, match="has uid"):
        caller(Call("unsnapshot", {**call.fields, "request_id": fresh("r")}))
    assert caller.list_snapshots(name)["s"].uid == new.uid


def test_a_call_whose_deadline_passed_goes_on_and_its_repeat_joins_it(shared, caller):
    name = fresh()
    caller(create(name, size_bytes=64 * MIB))
    write_pattern(shared, name, 1, length=48 * MIB)
    delete = Call("delete", {"name": volume_name(name), "request_id": fresh("r")})
    held = caller.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=volume_name(name)), timeout=60)
    next(held)  # an export that is not read to its end keeps the volume locked
    with pytest.raises(Refused) as late:
        caller.once(delete, timeout=0.5)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert late.value.operation or late.value.message.startswith("Deadline Exceeded")
    with ThreadPoolExecutor(2) as threads:
        repeats = [threads.submit(caller, delete) for _ in range(2)]
        time.sleep(0.2)
        list(held)
        answers = [repeat.result(30) for repeat in repeats]
    assert answers[0] == answers[1]
    assert done_by(caller, delete) == 1
    assert name not in caller.list_volumes()


def test_a_cancelled_import_leaves_nothing_and_may_be_made_again(shared, caller):
    name, image = fresh(), shared.images / "large.qcow2"
    make_image(image, 256 * MIB, 3)
    call = Call(
        "import",
        {"pool": POOL, "volume_id": name, "path": str(image), "source_format": volume_pb2.VOLUME_FORMAT_QCOW2, "request_id": fresh("r")},
    )
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(caller.once, call)
        deadline = time.monotonic() + 20
        while not (found := [row for row in caller.list_operations(unfinished=True) if row.request_id == call.fields["request_id"]]):
            assert time.monotonic() < deadline
        caller.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=found[0].name), timeout=10)
        with pytest.raises(Refused) as refused:
            running.result(60)
    assert refused.value.code == "CANCELLED"
    assert name not in caller.list_volumes()
    assert stray(shared.pool, shared.state / "spool") == []
    assert caller(call).volume.size_bytes == 256 * MIB
    image.unlink()


def test_answers_outlive_a_restart(base):
    with Daemon(base) as daemon, daemon.caller() as caller:
        calls = [prepared(verb, daemon, caller) for verb in VERBS]
        answers = [caller(call) for call in calls]
        caller.settle()
        caller(Call("delete", {"name": volume_name(calls[0].fields["volume_id"]), "request_id": fresh("r")}))
        daemon.kill9()
        daemon.start()
        assert [caller(call) for call in calls] == answers
        assert calls[0].fields["volume_id"] not in caller.list_volumes()  # an answer from the record makes nothing anew
        with pytest.raises(Refused, match="INVALID_ARGUMENT"):
            caller(create(fresh(), request_id=calls[1].fields["request_id"]))


def test_recorded_answers_are_forgotten_after_their_time(base: Path):
    assert Limits().operation_retention_hours == 24
    quick = "operation_retention_hours = 0.0005\ncheck_seconds = 0.2\nscan_seconds = 0.2"
    daemon = Daemon(base)
    daemon.config.write_text(daemon.config.read_text().replace("check_seconds = 600\nscan_seconds = 3600", quick))
    with daemon, daemon.caller() as caller:
        call = create(fresh())
        first = caller(call)
        assert caller(call).operation.name == first.operation.name
        deadline = time.monotonic() + 20
        while caller.list_operations():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        again = caller(call)
        assert again.operation.name != first.operation.name
        assert again.volume.uid == first.volume.uid
