"""Attach, detach, and what is done to an attached volume: repeated, and killed behind every system call that changes a file or asks libvirt."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.labs.domain import Guest
from tests.recovery.calls import POOL, Call, Caller, Refused, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.pool_files import names, stray
from tests.recovery.stepping import Stepping
from tests.soaking import SOAK, count, draw
from volgate.v1 import attachment_pb2

MIB = 1 << 20
SCSI = attachment_pb2.DISK_BUS_VIRTIO_SCSI
TIMES = count(10, soak=30)
POINTS = count(2, soak=10_000)
VERBS = ("attach", "detach", "snapshot", "expand")


def rid() -> dict[str, str]:
    return {"request_id": uuid.uuid4().hex}


@dataclass
class Place:
    """A daemon with a guest, and calls on volumes of its own."""

    daemon: Daemon
    caller: Caller
    guest: Guest

    def create(self) -> str:
        name = f"v-{uuid.uuid4().hex[:8]}"
        self.caller(Call("create", {"pool": POOL, "volume_id": name, "size_bytes": MIB, **rid()}))
        return name

    def attach(self, name: str, **options: object) -> Call:
        chosen = attachment_pb2.DiskOptions(bus=SCSI, **options)
        return Call("attach", {"volume": volume_name(name), "domain": self.guest.name, "options": chosen, **rid()})

    def detach(self, attachment: str) -> Call:
        return Call("detach", {"name": attachment, "wait_seconds": 60, **rid()})

    def prepared(self, verb: str) -> tuple[str, Call]:
        """A volume and the verb on it: attached already but for `attach`."""
        name = self.create()
        if verb == "attach":
            return name, self.attach(name)
        attached = self.caller(self.attach(name)).attachment
        calls = {
            "detach": self.detach(attached.name),
            "snapshot": Call("snapshot", {"volume": volume_name(name), "snapshot_id": "s", **rid()}),
            "expand": Call("expand", {"name": volume_name(name), "size_bytes": 2 * MIB, **rid()}),
        }
        return name, calls[verb]

    def look(self, name: str) -> tuple[object, ...]:
        """A volume as the contract tells it, and as the guest has it; they must agree."""
        row, read = self.caller.volume(name), self.caller.volume(name, refresh=True)
        assert (row.size_bytes, row.depth) == (read.size_bytes, read.depth)
        records = [record for record in self.caller.list_attachments() if record.volume == row.name]
        disks = self.settled_disks({record.options.serial: row.size_bytes for record in records})
        return (
            row.size_bytes,
            [(record.state, disks[record.options.serial]) for record in records],
            sorted(self.caller.list_snapshots(name)),
            row.depth,
        )

    def settled_disks(self, expected: dict[str, int]) -> dict[str, int]:
        """What the guest sees by serial, given time to see it."""
        deadline = time.monotonic() + 20
        while (disks := {disk.serial: disk.size for disk in self.guest.disks()}) != expected:
            assert time.monotonic() < deadline, f"the guest has {disks}, expected {expected}"
            time.sleep(0.05)
        return disks

    def clear(self) -> None:
        for record in self.caller.list_attachments():
            self.caller(self.detach(record.name))
        self.caller.settle()  # a detach is followed by merges
        assert self.guest.disks() == []


@pytest.fixture
def place(base: Path, guest: Guest) -> Iterator[Place]:
    with Daemon(base, uri=guest.libvirtd.uri) as daemon, daemon.caller() as caller:
        here = Place(daemon, caller, guest)
        yield here
        here.clear()
        caller.settle()
        assert stray(daemon.pool, daemon.state / "spool") == []


@pytest.mark.parametrize("at_once", [False, True], ids=["in sequence", "at once"])
def test_a_call_made_many_times_has_one_effect_and_one_answer(place: Place, at_once: bool):
    for verb in VERBS:
        _, call = place.prepared(verb)
        gate = threading.Barrier(TIMES if at_once else 1)

        def make(_: int, call: Call = call, gate: threading.Barrier = gate) -> object:
            with place.daemon.caller() as own:
                gate.wait(30)
                return own(call)

        with ThreadPoolExecutor(TIMES if at_once else 1) as threads:
            answers = list(threads.map(make, range(TIMES)))
        assert all(answer == answers[0] for answer in answers), verb
        assert sum(row.request_id == call.fields["request_id"] for row in place.caller.list_operations()) == 1
        with pytest.raises(Refused, match="INVALID_ARGUMENT"):
            place.caller(Call("create", {"pool": POOL, "volume_id": "other", "size_bytes": MIB, "request_id": call.fields["request_id"]}))


def test_an_attach_that_conflicts_names_the_difference(place: Place):
    name = place.create()
    first = place.caller(place.attach(name))
    with pytest.raises(Refused) as refused:
        place.caller(place.attach(name, access=attachment_pb2.ACCESS_MODE_READ_ONLY))
    assert refused.value.code == "ALREADY_EXISTS"
    assert "access is read-write, asked read-only" in refused.value.message
    assert place.caller(place.attach(name)).attachment == first.attachment


def test_late_repeats_spare_the_newer_attachment_and_do_not_bring_back_the_older(place: Place):
    name = place.create()
    attach = place.attach(name)
    first = place.caller(attach)
    detach = place.detach(first.attachment.name)
    gone = place.caller(detach)
    assert place.caller(attach) == first  # answered from the record: nothing is attached by it
    assert place.guest.disks() == []
    second = place.caller(place.attach(name)).attachment
    assert second.alias != first.attachment.alias
    assert place.caller(detach) == gone
    place.settled_disks({second.options.serial: MIB})
    place.daemon.kill9()
    place.daemon.start()
    assert (place.caller(attach), place.caller(detach)) == (first, gone)
    place.settled_disks({second.options.serial: MIB})


@pytest.mark.timeout(36_000 if SOAK else 180)
@pytest.mark.parametrize("verb", VERBS)
def test_a_kill_behind_any_system_call_is_finished_or_undone(place: Place, verb: str):
    random, killed = draw(), 0
    daemon, caller = place.daemon, place.caller
    name, call = place.prepared(verb)
    with Stepping(daemon, 0, libvirt=True) as steps:
        caller(call)
        caller.settle()
    after = place.look(name)
    place.clear()
    print(f"{verb}: {steps.seen} system calls change files")
    assert steps.seen > 10
    points = range(1, 400) if SOAK else sorted(random.sample(range(1, steps.seen + 1), POINTS))
    for point in points:
        name, call = place.prepared(verb)
        before = place.look(name)
        with Stepping(daemon, point, libvirt=True) as steps, contextlib.suppress(Refused):
            caller.once(call, timeout=30)
            caller.settle()
        if not steps.killed_at:
            if SOAK:
                break
            continue
        killed += 1
        where = f"killed behind call {point}: {steps.killed_at}"
        daemon.start()
        caller.settle()
        assert place.look(name) in (before, after), where
        again = caller(call)
        caller.settle()
        assert place.look(name) == after, where
        assert caller(call) == again, where
        place.clear()
        assert stray(daemon.pool) == [], where
        assert names(daemon.pool) == sorted(caller.list_volumes()), where
    print(f"{verb}: {killed} kills")
    assert killed
