"""Two controllers on one database and one pool: order, repeats, watching, cancelling, and what the one sees of the other's work."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.controllers.fleet import Fleet, until
from tests.recovery.calls import POOL, Call, Caller, Refused, volume_name
from tests.recovery.halting import Halting
from tests.recovery.images import make_image
from tests.recovery.pool_files import names, stray
from tests.soaking import count, draw
from volgate.v1 import operation_pb2, pool_pb2, volume_pb2

MIB = 1 << 20
QCOW2 = volume_pb2.VOLUME_FORMAT_QCOW2


@pytest.fixture(scope="module")
def shared(postgres) -> Iterator[Fleet]:
    with Fleet(postgres) as fleet:
        yield fleet
        assert fleet.clean()
        assert stray(fleet.member(1).pool) == []


@pytest.fixture
def both(shared: Fleet) -> Iterator[tuple[Caller, Caller]]:
    with shared.call(1) as one, shared.call(2) as two:
        yield one, two


def fresh(prefix: str = "v") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def create(name: str, **fields: object) -> Call:
    return Call("create", {"pool": POOL, "volume_id": name, "size_bytes": MIB, "request_id": fresh("r"), **fields})


def label(name: str, value: str) -> Call:
    return Call("update", {"name": volume_name(name), "labels": {"n": value}, "request_id": fresh("r")})


def imported(fleet: Fleet, name: str, size: int = 64 * MIB, **fields: object) -> Call:
    """An import of a path on the server that both may read."""
    folder = fleet.member(1).images
    image = folder / f"{name}.qcow2"
    if not image.exists():
        make_image(image, size, 5)
    return Call("import", {"pool": POOL, "volume_id": name, "path": str(image), "source_format": QCOW2, "request_id": fresh("r"), **fields})


def test_each_reads_at_once_what_the_other_wrote(both):
    for writer, reader in (both, both[::-1]):
        for _ in range(count(10, soak=200)):
            name = fresh()
            made = writer(create(name)).volume
            assert reader.volume(name).uid == made.uid and name in reader.list_volumes()
            reader(Call("delete", {"name": made.name, "request_id": fresh("r")}))
            with pytest.raises(Refused) as gone:
                _get(writer, name)
            assert gone.value.code == "NOT_FOUND" and name not in writer.list_volumes()


def _get(caller: Caller, name: str) -> object:
    try:
        return caller.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=volume_name(name), refresh=True), timeout=60)
    except Exception as error:
        raise Refused(error) from None


def test_a_call_that_is_repeated_elsewhere_is_the_same_operation(both):
    one, two = both
    call = create(fresh())
    first = one(call)
    assert two(call).operation.name == first.operation.name
    with pytest.raises(Refused) as other:
        two.once(create(fresh(), request_id=call.fields["request_id"]))
    assert other.value.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("by", ["request_id", "body"])
def test_a_call_that_runs_elsewhere_is_joined_and_answered_with_its_end(shared, both, by):
    one, two = both
    extra = {"request_id": ""} if by == "body" else {}
    call = imported(shared, fresh(), **extra)
    with ThreadPoolExecutor(2) as threads, Halting(shared[1], "qemu-img convert") as halting:
        first = threads.submit(one, call)
        halting.caught()
        second = threads.submit(two.once, call, 60)
        (running,) = two.list_operations(unfinished=True)
        shown = two.operations.GetOperation(operation_pb2.GetOperationRequest(name=running.name), timeout=30).operation
        assert (shown.method, shown.state) == ("ImportVolume", operation_pb2.OPERATION_STATE_RUNNING)
        time.sleep(0.5)
        assert not second.done()
        halting.go()
        assert first.result(60).volume.uid == second.result(60).volume.uid
        assert second.result().operation.name == running.name
    assert len(shared.rows(f"SELECT 1 FROM operation WHERE target = '{volume_name(call.fields['volume_id'])}'")) == 1


def test_the_failure_of_a_call_that_runs_elsewhere_is_told_as_it_is(shared, both):
    one, two = both
    name = fresh()
    call = imported(shared, name, size_bytes=MIB)  # less than the image has
    with ThreadPoolExecutor(2) as threads, Halting(shared[1], "qemu-img info") as halting:
        first = threads.submit(_refusal, one, call)
        halting.caught()
        second = threads.submit(_refusal, two, call)
        until(second.running, "the second call")
        time.sleep(0.5)
        halting.go()
        told = [first.result(60), second.result(60)]
    assert {(refused.code, refused.reason, refused.field) for refused in told} == {("OUT_OF_RANGE", "OUT_OF_RANGE", "header.size_bytes")}
    assert len(shared.rows(f"SELECT 1 FROM operation WHERE target = '{volume_name(name)}'")) == 1, "one operation, told twice"


def _refusal(caller: Caller, call: Call) -> Refused:
    with pytest.raises(Refused) as refused:
        caller.once(call)
    return refused.value


def test_an_operation_is_watched_and_cancelled_from_elsewhere(shared, both):
    one, two = both
    call = imported(shared, fresh())
    with ThreadPoolExecutor(2) as threads, Halting(shared[1], "qemu-img convert") as halting:
        first = threads.submit(_refusal, one, call)
        halting.caught()
        (running,) = until(lambda: two.list_operations(unfinished=True), "the operation")
        watch = two.operations.WatchOperation(operation_pb2.WatchOperationRequest(name=running.name), timeout=60)
        seen = [next(iter(watch)).operation]
        two.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=running.name), timeout=30)
        halting.go()
        seen += [one.operation for one in watch]
    assert seen[0].state == operation_pb2.OPERATION_STATE_RUNNING
    assert seen[-1].state == operation_pb2.OPERATION_STATE_CANCELLED
    assert first.result(30).code == "CANCELLED"
    assert call.fields["volume_id"] not in two.list_volumes()


def test_calls_of_one_object_run_in_the_order_of_their_first_commit(shared, both):
    """Labels are written by turns at both; the rows of the journal, in order, must be the order in which they took effect."""
    rng = draw()
    name = fresh()
    both[0](create(name))
    calls = [(rng.randrange(2), label(name, str(number))) for number in range(count(60, soak=2000))]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda drawn: both[drawn[0]](drawn[1]), calls))
    ordered = shared.rows(
        f"SELECT finished_at, created_at, convert_from(request, 'UTF8') FROM operation WHERE target = '{volume_name(name)}' "
        "AND method = 'UpdateVolume' ORDER BY finished_at"
    )
    assert len(ordered) == len(calls)
    last = ordered[-1][2]
    assert f'"n":"{both[0].volume(name, refresh=True).labels["n"]}"' in last.replace(" ", "")


def test_a_wait_behind_another_controllers_operation_ends_with_it_and_in_order(shared, both):
    one, two = both
    name = fresh()
    call = imported(shared, name)
    with ThreadPoolExecutor(8) as threads, Halting(shared[1], "qemu-img convert") as halting:
        first = threads.submit(one, call)
        halting.caught()
        waiting = []
        for number in range(6):
            waiting.append(threads.submit((two, one)[number % 2], label(name, str(number))))
            wanted = number + 2
            until(lambda wanted=wanted: shared.rows("SELECT count(*) FROM turn") == [(wanted,)], "its turn")
        assert not any(future.done() for future in waiting)
        halting.go()
        first.result(60)
        for future in waiting:
            future.result(60)
    ended = shared.rows(
        f"SELECT convert_from(request, 'UTF8') FROM operation WHERE target = '{volume_name(name)}' AND method = 'UpdateVolume' ORDER BY finished_at"
    )
    assert [f'"n":"{number}"' in row[0].replace(" ", "") for number, row in enumerate(ended)] == [True] * 6


def test_an_export_at_one_keeps_changes_at_the_other_waiting(shared, both):
    one, two = both
    name = fresh()
    one(imported(shared, name, size=32 * MIB))
    export = one.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=volume_name(name), format=QCOW2), timeout=60)
    next(iter(export))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(two, label(name, "after"))
        until(lambda: shared.rows("SELECT count(*) FROM turn") == [(2,)], "its turn")
        time.sleep(0.5)
        assert not waiting.done()
        assert sum(len(piece.chunk) for piece in export) > 0
        waiting.result(60)
    until(shared.clean, "the end of the export")


def test_a_pool_that_drains_by_one_refuses_at_both(both):
    one, two = both
    one.pools.DrainPool(pool_pb2.DrainPoolRequest(name=POOL), timeout=30)
    try:
        for caller in both:
            with pytest.raises(Refused) as refused:
                caller.once(create(fresh()))
            assert "draining" in refused.value.message
        until(lambda: two.pools.GetPool(pool_pb2.GetPoolRequest(name=POOL), timeout=30).pool.draining, "the word")
    finally:
        two.pools.DrainPool(pool_pb2.DrainPoolRequest(name=POOL, resume=True), timeout=30)
    one(create(fresh()))


def test_a_pool_that_is_put_in_quarantine_by_one_is_left_alone_by_both(shared, both):
    """What runs at the other one goes on to its end, what waits there waits for the release; whoever asks is told of both."""
    one, two = both
    name = fresh()
    call = imported(shared, name, 8 * MIB)
    with ThreadPoolExecutor(2) as threads, Halting(shared[2], "qemu-img convert") as halting:
        first = threads.submit(two, call)
        halting.caught()
        behind = threads.submit(two, label(name, "late"))
        until(lambda: len(one.list_operations(unfinished=True)) == 2, "the second operation")
        told = one.pools.QuarantinePool(pool_pb2.QuarantinePoolRequest(name=POOL, reason="suspect"), timeout=30)
        try:
            assert set(told.operations) == {row.name for row in one.list_operations(unfinished=True)}
            until(lambda: two.pools.GetPool(pool_pb2.GetPoolRequest(name=POOL), timeout=30).pool.quarantine == "suspect", "the word")
            halting.go()
            first.result(60)
            for caller in both:
                with pytest.raises(Refused) as refused:
                    caller.once(create(fresh()))
                assert refused.value.reason == "POOL_QUARANTINED"
            assert not behind.done()
        finally:
            one.pools.QuarantinePool(pool_pb2.QuarantinePoolRequest(name=POOL, release=True), timeout=30)
        assert behind.result(60).volume.labels == {"n": "late"}
    until(lambda: not two.pools.GetPool(pool_pb2.GetPoolRequest(name=POOL), timeout=30).pool.quarantine, "the release")
    two(create(fresh()))


def test_many_calls_at_both_leave_what_one_would_have_left(shared, both):
    rng = draw()
    before = set(both[0].list_volumes())
    wanted = [fresh("m") for _ in range(count(40, soak=1000))]

    def live(name: str) -> None:
        rng.choice(both)(create(name))
        cut = Call("snapshot", {"volume": volume_name(name), "snapshot_id": "s", "request_id": fresh("r")})
        rng.choice(both)(cut)
        rng.choice(both)(label(name, "x"))
        rng.choice(both)(cut)
        grown = Call("expand", {"name": volume_name(name), "size_bytes": 2 * MIB, "request_id": fresh("r")})
        rng.choice(both)(grown)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(live, wanted))
    for caller in both:
        found = caller.list_volumes()
        assert set(found) - before == set(wanted)
        assert {found[name].size_bytes for name in wanted} == {2 * MIB}
        assert all(list(caller.list_snapshots(name)) == ["s"] for name in wanted)
    assert set(wanted) <= set(names(Path(shared.member(1).pool)))
    until(shared.clean, "the end of all")
