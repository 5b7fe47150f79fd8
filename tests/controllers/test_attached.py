"""Guests and several controllers: what one attaches another one knows, holds and takes away, also when the first dies over it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.controllers.fleet import Fleet, until
from tests.controllers.test_two import create, fresh
from tests.labs.domain import Guest
from tests.recovery.calls import Call, Refused, volume_name
from tests.recovery.pool_files import stray
from tests.soaking import count, draw
from volgate.v1 import attachment_pb2

OPTIONS = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI)


@pytest.fixture(scope="module")
def shared(postgres, libvirtd) -> Iterator[Fleet]:
    with Fleet(postgres, uri=libvirtd.uri) as fleet:
        yield fleet
        assert stray(fleet.member(1).pool) == []


def attach(name: str, guest: Guest) -> Call:
    return Call("attach", {"volume": volume_name(name), "domain": guest.name, "options": OPTIONS, "request_id": fresh("r")})


def detach(attachment: str) -> Call:
    return Call("detach", {"name": attachment, "wait_seconds": 60, "request_id": fresh("r")})


def test_what_one_attached_the_other_holds_snapshots_and_takes_away(shared, guest: Guest):
    name = fresh()
    with shared.call(1) as one, shared.call(2) as two:
        one(create(name))
        held = one(attach(name, guest)).attachment
        assert [row.name for row in two.list_attachments()] == [held.name]
        assert two(attach(name, guest)).attachment.name == held.name, "one disk, whoever is asked"
        with pytest.raises(Refused, match="detach it first"):
            two(Call("delete", {"name": volume_name(name), "request_id": fresh("r")}))
        two(Call("snapshot", {"volume": volume_name(name), "snapshot_id": "s", "request_id": fresh("r")}))
        one(Call("snapshot", {"volume": volume_name(name), "snapshot_id": "t", "request_id": fresh("r")}))
        until(lambda: len(guest.disks()) == 1, "the disk")
        two(detach(held.name))
        assert guest.disks() == [] and one.list_attachments() == []
        one(Call("unsnapshot", {"name": f"{volume_name(name)}/snapshots/s", "request_id": fresh("r")}))
        until(shared.clean, "the end of the merges")


@pytest.mark.parametrize("verb", ["attach", "detach"])
def test_an_attachment_that_a_dead_one_was_at_is_finished_by_the_other(shared, guest: Guest, verb):
    rng = draw()
    for _ in range(count(3, soak=60)):
        name = fresh()
        with shared.call(1) as one, shared.call(2) as two, ThreadPoolExecutor(1) as threads:
            two(create(name))
            held = None if verb == "attach" else two(attach(name, guest)).attachment.name
            call = attach(name, guest) if held is None else detach(held)
            with shared.call(1, retries=False) as once:
                told = threads.submit(once.once, call)
                time.sleep(rng.uniform(0.0, 0.12))
                shared.member(1).kill9()
                told.exception(60)
            answer = two(call)
            if verb == "attach":  # the guest's own kernel finds a new disk a little later
                until(lambda: len(guest.disks()) == 1, "the disk")
            else:
                assert guest.disks() == []
            assert shared[1].pid
            assert one(call).operation.state == answer.operation.state
            if verb == "attach":
                one(detach(answer.attachment.name))
        until(lambda: guest.disks() == [], "its end")
        until(shared.clean, "the end of all")


def test_disks_that_both_attach_to_one_guest_at_once_have_places_of_their_own(shared, guest: Guest):
    names = [fresh() for _ in range(count(8, soak=40))]
    with shared.call(1) as one, shared.call(2) as two, ThreadPoolExecutor(8) as threads:
        list(threads.map(one, map(create, names)))
        calls = [((one, two)[number % 2], attach(name, guest)) for number, name in enumerate(names)]
        held = list(threads.map(lambda pair: pair[0](pair[1]).attachment, calls))
        until(lambda: len({disk.name for disk in guest.disks()}) == len(names), "the disks")
        assert len({row.target for row in held}) == len(names)
        list(threads.map(lambda pair: (two, one)[pair[0] % 2](detach(pair[1].name)), enumerate(held)))
        until(lambda: guest.disks() == [], "the end of the disks")
    until(shared.clean, "the end of all")
