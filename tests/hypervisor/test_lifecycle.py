"""Every state a domain may be in, and what it does while a disk is attached."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import libvirt
import pytest

from tests.hypervisor.rig import BUSES, Bench
from tests.labs.domain import Guest
from tests.plugins.directory_rig import MIB
from volgate.errors import InUse, OutOfRange, Precondition
from volgate.hosts.interface import DetachOutcome, EventKind, HostEvent
from volgate.model import Bus


@pytest.mark.parametrize("bus", BUSES)
def test_domain_that_is_off_has_the_disk_when_it_starts(bench: Bench, fresh_guest: Guest, bus: Bus) -> None:
    fresh_guest.destroy()
    wanted = bench.plan(fresh_guest.name, bench.volume(), bus=bus)
    done = bench.attach(wanted)
    assert (done.live, done.config) == (False, True)
    fresh_guest.start(boot=True)
    assert fresh_guest.wait_disk(wanted.options.serial)
    seen = bench.seen(wanted)
    assert seen.live and seen.config and seen.qemu and seen.boot
    fresh_guest.destroy()
    assert bench.detach(wanted) is DetachOutcome.GONE
    seen = bench.seen(wanted)
    assert seen.domain_exists and not (seen.active or seen.live or seen.config or seen.qemu or seen.source or seen.boot)


def test_transient_domain_has_it_live_only(bench: Bench, fresh_guest: Guest) -> None:
    fresh_guest.domain.undefine()
    wanted = bench.plan(fresh_guest.uuid, bench.volume())
    done = bench.attach(wanted)
    assert (done.live, done.config) == (True, False)
    assert bench.detach(wanted) is DetachOutcome.GONE
    fresh_guest.domain.destroy()
    assert not bench.seen(wanted).domain_exists
    assert bench.detach(wanted) is DetachOutcome.GONE, "a domain that is gone holds nothing"


def test_domain_is_known_by_name_and_by_uuid(bench: Bench, guest: Guest) -> None:
    by_name, by_uuid = (bench.host.find_domain(reference, timeout=5) for reference in (guest.name, guest.uuid))
    assert by_name == by_uuid and by_name.active and by_name.persistent and by_name.boot
    assert by_name in bench.host.list_domains(timeout=5)
    wanted = bench.plan(guest.name, bench.volume())
    done = bench.attach(wanted)
    assert done.live and bench.host.presence(guest.uuid, wanted.alias, done.source, timeout=5).live
    assert bench.host.detach(guest.uuid.upper(), wanted.alias, done.source, timeout=10) is DetachOutcome.GONE


def test_power_cycle_keeps_the_disk_of_the_configuration(bench: Bench, fresh_guest: Guest) -> None:
    told: list[HostEvent] = []
    bench.host.subscribe(told.append)
    kept, lost = (bench.plan(fresh_guest.uuid, bench.volume(name)) for name in ("kept", "lost"))
    for wanted in (kept, lost):
        assert bench.attach(wanted).config
    fresh_guest.domain.detachDeviceAlias(lost.alias, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    before = bench.seen(lost)
    assert before.live and not before.config
    fresh_guest.destroy()
    fresh_guest.start(boot=True)
    bench.eventually(lambda: {e.kind for e in told if e.domain == fresh_guest.uuid} >= {EventKind.DOMAIN_STOPPED, EventKind.DOMAIN_STARTED})
    assert fresh_guest.wait_disk(kept.options.serial)
    assert bench.seen(kept).live and bench.seen(kept).boot != before.boot
    after = bench.seen(lost)
    assert after.domain_exists and not (after.live or after.config or after.qemu)
    assert bench.detach(lost) is DetachOutcome.GONE and bench.detach(kept) is DetachOutcome.GONE


def test_killed_qemu_lets_go_and_the_configuration_stays(bench: Bench, fresh_guest: Guest) -> None:
    wanted = bench.plan(fresh_guest.uuid, bench.volume())
    bench.attach(wanted)
    os.kill(fresh_guest.qemu_pid(), signal.SIGKILL)
    bench.eventually(lambda: not bench.seen(wanted).active)
    seen = bench.seen(wanted)
    assert seen.config and not seen.live and not seen.qemu
    bench.pool.checked()
    fresh_guest.start(boot=True)
    assert fresh_guest.wait_disk(wanted.options.serial) and bench.seen(wanted).live
    assert bench.detach(wanted) is DetachOutcome.GONE


def test_paused_guest_is_pending_and_holds_nobody_up(bench: Bench, fresh_guest: Guest) -> None:
    wanted, other = (bench.plan(fresh_guest.uuid, bench.volume(name)) for name in ("a", "b"))
    bench.attach(wanted)
    fresh_guest.pause()
    outcome: list[DetachOutcome] = []
    waiting = threading.Thread(target=lambda: outcome.append(bench.detach(wanted, 4.0)))
    waiting.start()
    time.sleep(0.3)
    began = time.monotonic()
    assert bench.attach(other).live, "the deaf guest's detach keeps no lane"
    assert bench.seen(other).live and time.monotonic() - began < 2.0
    waiting.join()
    assert outcome == [DetachOutcome.PENDING]
    seen = bench.seen(wanted)
    assert seen.live and seen.qemu and not seen.config
    fresh_guest.resume()
    assert bench.detach(wanted, 20.0) is DetachOutcome.GONE
    fresh_guest.wait_agent()
    assert [disk.serial for disk in fresh_guest.disks()] == [other.options.serial]


def test_guest_in_early_boot_releases_it_once_it_listens(bench: Bench, fresh_guest: Guest) -> None:
    wanted = bench.plan(fresh_guest.uuid, bench.volume())
    bench.attach(wanted)
    fresh_guest.destroy()
    fresh_guest.domain.create()
    began = time.monotonic()
    assert bench.detach(wanted, 0.0) is DetachOutcome.PENDING, "nobody listens in the first instants"
    assert time.monotonic() - began < 2.0
    assert bench.detach(wanted, 40.0) is DetachOutcome.GONE
    fresh_guest.wait_agent(40)
    assert fresh_guest.disks() == []


def test_same_file_goes_into_a_domain_once(bench: Bench, guest: Guest, new_guest: Callable[[], Guest]) -> None:
    volume = bench.volume()
    first = bench.plan(guest.uuid, volume)
    done = bench.attach(first)
    with pytest.raises(InUse, match=f"already as {done.target}") as refused:
        bench.attach(bench.plan(guest.uuid, volume))
    assert refused.value.reason == "IN_USE"
    other = new_guest()
    with pytest.raises(InUse, match="another process"):
        bench.attach(bench.plan(other.uuid, volume))
    assert other.live_disks() == [] and len(guest.live_disks()) == 1
    assert bench.detach(first) is DetachOutcome.GONE


def test_detach_of_the_wrong_source_does_nothing(bench: Bench, guest: Guest) -> None:
    wanted, other = (bench.plan(guest.uuid, bench.volume(name)) for name in ("vol1", "vol10"))
    bench.attach(wanted)
    with pytest.raises(InUse, match="nothing was detached") as refused:
        bench.host.detach(guest.uuid, wanted.alias, other.connection.path, timeout=5)
    assert refused.value.reason == "IDENTITY_MISMATCH"
    seen = bench.seen(wanted)
    assert seen.live and seen.config and seen.qemu
    assert not bench.seen(other).qemu, "vol1 is not vol10"
    assert bench.detach(wanted) is DetachOutcome.GONE


def test_attach_under_an_alias_that_holds_another_file_is_refused(bench: Bench, guest: Guest) -> None:
    wanted = bench.plan(guest.uuid, bench.volume("a"))
    bench.attach(wanted)
    with pytest.raises(InUse) as refused:
        bench.attach(bench.plan(guest.uuid, bench.volume("b"), alias=wanted.alias))
    assert refused.value.reason == "IDENTITY_MISMATCH"
    assert bench.detach(wanted) is DetachOutcome.GONE


def test_what_a_mutation_left_half_is_completed_by_its_repeat(bench: Bench, guest: Guest) -> None:
    wanted = bench.plan(guest.uuid, bench.volume())
    first = bench.attach(wanted)
    guest.domain.detachDeviceAlias(wanted.alias, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert bench.attach(wanted) == first, "the configuration was missing"
    guest.domain.detachDeviceAlias(wanted.alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    bench.eventually(lambda: not guest.live_disks())
    assert bench.attach(wanted).live, "the live disk was missing"
    assert guest.wait_disk(wanted.options.serial)
    assert bench.detach(wanted) is DetachOutcome.GONE


@pytest.mark.parametrize("bus", BUSES)
def test_resize_grows_under_the_guest_and_never_shrinks(bench: Bench, guest: Guest, bus: Bus) -> None:
    wanted = bench.plan(guest.uuid, bench.volume(), bus=bus)
    bench.attach(wanted)
    before = guest.wait_disk(wanted.options.serial)
    assert before and before.size == 8 * MIB
    for size in (16 * MIB, 16 * MIB):
        assert bench.host.resize(guest.uuid, wanted.alias, size, timeout=10) == size
    bench.eventually(lambda: [disk.size for disk in guest.disks()] == [16 * MIB])
    with pytest.raises(OutOfRange, match="not made smaller"):
        bench.host.resize(guest.uuid, wanted.alias, 8 * MIB, timeout=10)
    assert [disk.size for disk in guest.disks()] == [16 * MIB]
    assert bench.detach(wanted) is DetachOutcome.GONE
    with pytest.raises(Precondition, match="does not run with disk"):
        bench.host.resize(guest.uuid, wanted.alias, 32 * MIB, timeout=10)
