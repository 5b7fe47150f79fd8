"""Whatever breaks at a random moment of an attach or a detach: the call ends, and guest, record and host agree."""

from __future__ import annotations

import random
import time

import pytest

from tests.hosts.visit import PATIENCE, SHARED, Visit, frozen_qemu, steps_of
from tests.labs.site import until
from tests.recovery.calls import Refused
from tests.soaking import SOAK, count, draw
from volgate.v1 import host_pb2

ROUNDS = count(2, soak=200)
LONGEST = 0.4  # seconds into the call: an attach takes about 0.1, a detach 0.3


def break_something(visit: Visit, dice: random.Random) -> str:
    """Break one thing, or two, and mend them; return what it was."""
    kinds = ["host", "controller", "both", "cut", "frozen host"]
    kind = dice.choice(kinds)
    if kind in ("host", "both"):
        visit.h1.kill9()
    if kind in ("controller", "both"):
        visit.site.controller.kill9()
    if kind == "cut":
        visit.h1.port.cut()
        time.sleep(dice.uniform(0.0, 2.0))
        visit.h1.port.heal()
    if kind == "frozen host":
        visit.h1.freeze()
        time.sleep(dice.uniform(0.0, 2.0))
        visit.h1.thaw()
    if not visit.site.controller.runs:
        visit.site.controller.start()
    if not visit.h1.runs:
        visit.h1.start()
    return kind


@pytest.mark.timeout(36_000 if SOAK else 180)
def test_a_call_that_something_breaks_ends_and_all_agree_on_how(visit: Visit):
    dice = draw()
    for number in range(ROUNDS):
        name = visit.create()
        serial = f"vg-{visit.caller.volume(name).uid.replace('-', '')[:17]}"
        held = ""
        for verb in ("attach", "detach"):
            call = visit.attach(name, visit.h1) if verb == "attach" else visit.detach(held)
            running = visit.begun(call)
            time.sleep(dice.uniform(0.0, LONGEST))
            what = f"round {number}: {break_something(visit, dice)} in {verb}"
            answer = running.result(PATIENCE)
            visit.caller.settle(PATIENCE)
            held = answer.attachment.name if verb == "attach" else ""
            visit.sees(visit.h1, {serial} if verb == "attach" else set(), what)
            assert [record.name for record in visit.caller.list_attachments()] == ([held] if held else []), what
            assert visit.caller(call) == answer, what


def test_an_attach_in_doubt_ends_with_the_release_of_its_host_and_its_disk_goes_when_that_returns(visit: Visit):
    name = visit.create(raw=True)
    serial = f"vg-{visit.caller.volume(name).uid.replace('-', '')[:17]}"
    call = visit.attach(name, visit.h1, access=SHARED)
    with frozen_qemu(visit.h1):
        running = visit.begun(call)
        until(lambda: [step.kind for step in steps_of(visit.h1)] == ["attach"], what="the step's record")
        visit.h1.port.cut()
    visit.h1.wait_dead()
    until(lambda: visit.serials(visit.h1) == {serial}, what="the attach that nobody heard of")
    release = host_pb2.ReleaseHostRequest(name="hosts/h1", assume_off=True)
    visit.site.controller.wire.hosts.ReleaseHost(release, timeout=30)
    with pytest.raises(Refused, match="released"):
        running.result(PATIENCE)
    visit.attached(name, visit.h2, access=SHARED)
    visit.h1.port.heal()
    visit.h1.wait_live()
    visit.usable(visit.h1)
    visit.sees(visit.h1, set())
    visit.sees(visit.h2, {serial})
    assert [record.host for record in visit.caller.list_attachments()] == ["hosts/h2"]


def test_a_host_that_was_removed_and_comes_back_loses_what_is_written_elsewhere(visit: Visit):
    """Its domain is off: the disk is in the configuration alone, where no lock of QEMU would keep a second writer away."""
    name, guest, hosts = visit.create(), visit.h1.guest, visit.site.controller.wire.hosts
    assert guest
    old = visit.attached(name, visit.h1)
    guest.destroy()
    visit.h1.port.cut()
    visit.h1.wait_dead()
    hosts.ReleaseHost(host_pb2.ReleaseHostRequest(name="hosts/h1", assume_off=True), timeout=30)
    hosts.RemoveHost(host_pb2.RemoveHostRequest(name="hosts/h1"), timeout=30)
    new = visit.attached(name, visit.h2)
    assert old.alias in guest.domain.XMLDesc()
    visit.h1.port.heal()
    visit.h1.wait_live()
    visit.usable(visit.h1)
    assert old.alias not in guest.domain.XMLDesc()
    assert [record.name for record in visit.caller.list_attachments()] == [new.name]
