"""SIGTERM with calls in flight: what can end in time ends and is answered, the rest is taken up by the next start."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.recovery.calls import POOL, Call, Refused, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.halting import Halting
from tests.recovery.images import active_file, make_image, write_pattern
from tests.recovery.pool_files import names, stray
from volgate.v1 import operation_pb2, volume_pb2

MIB = 1 << 20
CALLS = 60


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


def test_calls_in_flight_are_answered_or_made_again_with_the_same_outcome(base: Path):
    calls = [Call("create", {"pool": POOL, "volume_id": f"v{number}", "size_bytes": MIB, **rid()}) for number in range(CALLS)]
    answered: dict[int, str] = {}
    with Daemon(base) as daemon, daemon.caller(retries=False) as once, daemon.caller() as caller:
        begun = threading.Barrier(CALLS + 1)

        def make(number: int) -> str:
            begun.wait(30)
            try:
                answered[number] = once(calls[number]).volume.uid
            except Refused as error:
                return error.code
            return "OK"

        with ThreadPoolExecutor(CALLS) as threads:
            outcomes = [threads.submit(make, number) for number in range(CALLS)]
            begun.wait(30)
            while not answered:
                time.sleep(0.001)
            assert daemon.stop() == 0
            codes = {outcome.result(30) for outcome in outcomes}
        print(f"{len(answered)} of {CALLS} were answered before the end, the others were told {codes - {'OK'}}")
        assert codes <= {"OK", "UNAVAILABLE"}
        daemon.start()
        uids = {number: caller(call).volume.uid for number, call in enumerate(calls)}
        assert answered.items() <= uids.items()
        assert names(daemon.pool) == sorted(call.fields["volume_id"] for call in calls)
        assert stray(daemon.pool) == []


def test_a_long_import_is_handed_over_to_the_next_start(base: Path):
    with Daemon(base, stop=0.2) as daemon, daemon.caller(retries=False) as once, daemon.caller() as caller:
        image = make_image(daemon.images / "large.qcow2", 64 * MIB, 3)
        call = Call(
            "import",
            {"pool": POOL, "volume_id": "v", "path": str(image), "source_format": volume_pb2.VOLUME_FORMAT_QCOW2, **rid()},
        )
        with ThreadPoolExecutor(1) as threads:
            with Halting(daemon, "qemu-img convert") as halting:
                running = threads.submit(once, call)
                halting.caught()  # it will not be ready in time
                children = daemon.descendants()
                assert daemon.stop() == 0
            daemon.reap(children)
            told = running.exception(30)
        daemon.start()
        resumed = int(re.findall(r'"resumed": (\d+)', daemon.log.read_text())[-1])
        print(f"the caller was told {told}; {resumed} operations were handed over")
        assert resumed == 1
        assert isinstance(told, Refused)
        assert told.code == "UNAVAILABLE"
        answer = caller(call)
        assert answer.operation.state == operation_pb2.OPERATION_STATE_DONE
        assert len([row for row in caller.list_operations() if row.method == "ImportVolume"]) == 1
        subprocess.run(["qemu-img", "compare", "-q", str(image), str(active_file(daemon, "v")[0])], check=True, timeout=60)
        assert stray(daemon.pool, daemon.state / "spool") == []


def test_calls_that_wait_in_a_queue_are_handed_over_too(base: Path):
    with Daemon(base, stop=0.2) as daemon, daemon.caller() as caller:
        caller(Call("create", {"pool": POOL, "volume_id": "v", "size_bytes": 64 * MIB, **rid()}))
        write_pattern(daemon, "v", 1, length=48 * MIB)
        held = caller.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=volume_name("v")), timeout=60)
        next(held)  # keeps the volume locked
        delete = Call("delete", {"name": volume_name("v"), **rid()})
        again = Call("create", {"pool": POOL, "volume_id": "v", "size_bytes": MIB, **rid()})
        for call in (delete, again):
            try:
                caller.once(call, 0.5)
            except Refused as error:
                assert error.code == "DEADLINE_EXCEEDED"
        assert daemon.stop() == 0
        daemon.start()
        caller.settle()
        assert caller.volume("v").size_bytes == MIB  # both ran, in their order
        assert caller(delete).operation.state == operation_pb2.OPERATION_STATE_DONE
        assert caller(again).volume.uid == caller.volume("v", refresh=True).uid
        assert stray(daemon.pool, daemon.state / "spool") == []
