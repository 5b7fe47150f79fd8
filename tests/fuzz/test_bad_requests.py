"""Bad requests to every call: each is refused with its field or its own code, and nothing changes."""

from __future__ import annotations

import collections
import sqlite3
import time

import grpc
import pytest

from tests.contract.reasons import listed
from tests.edge import fingerprint
from tests.edge.secured import Secured, secured
from tests.edge.wire import Refusal, refusal
from tests.fuzz.badness import kind_of
from tests.fuzz.cases import Case, cases
from tests.fuzz.good import FOLLOWED, GOOD, furnish
from tests.fuzz.walk import CALLS
from tests.soaking import count, draw
from volgate.edge.identity import Role
from volgate.edge.policy import POLICY
from volgate.v1 import operation_pb2

NUMBER = count(1000, soak=10_000)
BATCH = 50
REASONS = set(listed())


@pytest.fixture
def place():
    with secured("host_dead_seconds = 0.3") as made:
        furnish(made)
        yield made


ENDLESS = {"WatchPaths"}  # its first message is its answer


def send(place: Secured, call, messages) -> Refusal | None:
    """Send a request; None if it was answered."""
    channel = place.wire.channel if Role.ADMIN in POLICY[call.path].roles else place.by("host", "fuzz").channel
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
    }
    wire = [message if isinstance(message, bytes) else message.SerializeToString() for message in messages]
    streams = (call.descriptor.client_streaming, call.descriptor.server_streaming)
    stub = kinds[streams](call.path, request_serializer=None, response_deserializer=None)
    try:
        answer = stub(iter(wire) if streams[0] else wire[0], timeout=30)
        if call.name in ENDLESS:
            next(answer)
            answer.cancel()
        elif streams[1]:
            collections.deque(answer, maxlen=0)
    except grpc.RpcError as error:
        return refusal(error)
    return None


def problem(case: Case, said: Refusal | None) -> str:
    """What is wrong with an answer, "" for nothing."""
    if said is None:
        found = "it was answered"
    elif said.code in {"INTERNAL", "UNKNOWN"} or said.code not in case.codes:
        found = f"the code is {said.code}, not one of {case.codes}"
    elif said.domain != "volgate" or said.reason not in REASONS:
        found = f"the reason is {said.domain}/{said.reason}"
    elif said.code == "INVALID_ARGUMENT" and (
        len(said.fields) != 1 or said.fields[0] not in case.fields or said.fields[0] not in said.message
    ):
        found = f"it names {said.fields}, not one of {case.fields}"
    else:
        return ""
    return f"{case.call.name} ({case.what} of {sorted(case.covers)}): {found}\n{str(case.messages)[:800]}\n{said and said.message[:300]}"


def settle(place: Secured) -> None:
    """Wait until what follows the controls by itself has ended."""
    quiet = 0
    while quiet < 3:
        running = place.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(unfinished_only=True), timeout=10).operations
        quiet = 0 if running else quiet + 1
        time.sleep(0.005)


def seen(place: Secured):
    return fingerprint.of_pool(place.pool), fingerprint.of_database(place.state, without=("operation",)), place.spool()


def journal(place: Secured) -> dict[str, str]:
    connection = sqlite3.connect(f"file:{place.state}/volgate.db?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT id, state FROM operation"))
    finally:
        connection.close()


def test_every_field_has_a_way_to_be_wrong():
    silent = {
        f"{call.name}.{field.path}"
        for call in CALLS.values()
        for field in call.fields
        if not kind_of(call.name, field.path) and field.descriptor.type not in (field.descriptor.TYPE_BOOL, field.descriptor.TYPE_MESSAGE)
    }
    assert not silent, "say in badness.py how they can be wrong"
    assert set(GOOD) == set(CALLS)


def test_bad_requests_are_refused_and_change_nothing(place):
    rng = draw()
    wanted = {f"{call.name}.{field.path}" for call in CALLS.values() for field in call.fields}
    covered, codes, controls, rows = set(), collections.Counter(), 0, 0
    before, known, batch, problems = seen(place), journal(place), [], []
    every = list(cases(place, rng, NUMBER))
    for index, case in enumerate(every, start=1):
        said = send(place, case.call, case.messages)
        problems += [found] if (found := problem(case, said)) else []
        covered |= {f"{case.call.name}.{path}" for path in case.covers}
        codes[said.code if said else "OK"] += 1
        batch.append(case)
        if len(batch) < BATCH and index < len(every):
            continue
        now = journal(place)
        if seen(place) != before:
            problems.append(f"one of these changed something: {[f'{c.call.name} {c.covers}' for c in batch]}")
        added = {name: state for name, state in now.items() if known.get(name) != state}
        if not set(added.values()) <= {"failed"} or len(added) > sum(c.journalled for c in batch):
            problems.append(f"the journal has {added} after {[f'{c.call.name} {c.covers}' for c in batch if c.journalled]}")
        rows += len(added)
        for name in rng.sample(sorted(GOOD), 6) if index < len(every) else sorted(GOOD):
            good = GOOD[name](place, rng)
            if name in FOLLOWED:
                good.validate_only = index < len(every)
            said = send(place, CALLS[name], good if isinstance(good, list) else [good])
            problems += [f"control {name}: {good}\n{said}"] if said else []
            controls += 1
        settle(place)
        before, known, batch = seen(place), journal(place), []
    assert not problems, f"{len(problems)} wrong answers\n\n" + "\n\n".join(problems[:20])
    print(f"{len(every)} bad requests, {controls} controls; {dict(codes)}; {rows} refusals of use cases in the journal, all failed")
    print(f"covered {len(covered & wanted)} of {len(wanted)} fields of {len(CALLS)} calls")
    assert wanted <= covered, sorted(wanted - covered)
    assert "bug" not in place.server.log.read_text().lower()
