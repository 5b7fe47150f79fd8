"""libvirtd restarted, killed, frozen: every call answers in its time, and works again afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hypervisor.rig import Bench
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.soaking import SOAK, count, draw
from volgate.errors import InDoubt, Unreachable, VolgateError
from volgate.hosts.interface import DetachOutcome, EventKind, HostEvent
from volgate.hosts.local import LocalHost
from volgate.hypervisor import session


@pytest.fixture
def frozen(libvirtd: PrivateLibvirtd) -> Iterator[Callable[[], None]]:
    """Freeze libvirtd; it is thawed at the end of the test whatever happens."""
    yield libvirtd.freeze
    libvirtd.thaw()


@pytest.mark.parametrize("way", ["restart", "kill9"])
def test_libvirtd_restarted_between_calls(bench: Bench, guest: Guest, libvirtd: PrivateLibvirtd, way: str) -> None:
    told: list[HostEvent] = []
    bench.host.subscribe(told.append)
    wanted = bench.plan(guest.uuid, bench.volume())
    first = bench.attach(wanted)
    assert guest.wait_disk(wanted.options.serial)
    bench.eventually(lambda: [e.kind for e in told].count(EventKind.RECONNECTED) == 1)
    if way == "restart":
        libvirtd.restart()
    else:
        libvirtd.kill9()
        began = time.monotonic()
        with pytest.raises(Unreachable, match="is libvirtd running") as down:
            bench.host.find_domain(guest.uuid, timeout=5)
        assert time.monotonic() - began < 1.0 and down.value.reason == "LIBVIRT_LOST", "a libvirt that is down is told at once"
        info = bench.host.info()
        assert not info.connected and "is libvirtd running" in info.problem
        libvirtd.start()
    bench.eventually(lambda: [e.kind for e in told].count(EventKind.RECONNECTED) == 2)
    assert bench.host.info().connected
    assert bench.attach(wanted) == first
    assert bench.detach(wanted) is DetachOutcome.GONE
    assert guest.disks() == []


def test_events_come_again_after_a_reconnect(bench: Bench, fresh_guest: Guest, libvirtd: PrivateLibvirtd) -> None:
    told: list[HostEvent] = []
    bench.host.subscribe(told.append)
    bench.eventually(lambda: [e.kind for e in told] == [EventKind.RECONNECTED])
    libvirtd.kill9()
    libvirtd.start()
    bench.eventually(lambda: [e.kind for e in told].count(EventKind.RECONNECTED) == 2)
    wanted = bench.plan(fresh_guest.uuid, bench.volume())
    bench.attach(wanted)
    assert bench.detach(wanted) is DetachOutcome.GONE
    bench.eventually(lambda: HostEvent(EventKind.DEVICE_REMOVED, fresh_guest.uuid, wanted.alias) in told)
    fresh_guest.destroy()
    bench.eventually(lambda: HostEvent(EventKind.DOMAIN_STOPPED, fresh_guest.uuid) in told)


def test_frozen_libvirtd_holds_nobody_longer_than_asked(
    bench: Bench, guest: Guest, libvirtd: PrivateLibvirtd, frozen: Callable[[], None]
) -> None:
    attached, wanted = (bench.plan(guest.uuid, bench.volume(name)) for name in ("a", "b"))
    bench.attach(attached)
    path = attached.connection.path
    host = bench.host
    calls: dict[str, Callable[[], object]] = {
        "find": lambda: host.find_domain(guest.uuid, timeout=1.0),
        "find by name": lambda: host.find_domain(guest.name, timeout=1.0),
        "list": lambda: host.list_domains(timeout=1.0),
        "presence": lambda: host.presence(guest.uuid, attached.alias, path, timeout=1.0),
        "prepare": lambda: host.prepare(wanted, timeout=1.0),
        "attach": lambda: host.attach(wanted, timeout=1.0),
        "attach too": lambda: host.attach(wanted, timeout=1.0),
        "resize": lambda: host.resize(guest.uuid, attached.alias, 16 << 20, timeout=1.0),
        "repair": lambda: host.repair(guest.uuid, [path], apply=True, timeout=1.0),
        "detach": lambda: host.detach(guest.uuid, attached.alias, path, timeout=1.0),
    }

    def timed(call: Callable[[], object]) -> tuple[float, object]:
        began = time.monotonic()
        try:
            answer = call()
        except VolgateError as error:
            answer = error
        return time.monotonic() - began, answer

    frozen()
    with ThreadPoolExecutor(len(calls) + 2) as pool:
        running = {name: pool.submit(timed, call) for name, call in calls.items()}
        info, paths = pool.submit(timed, host.info), pool.submit(timed, lambda: host.paths(guest.uuid, attached.alias, timeout=1.0))
        files = timed(lambda: host.file_paths(attached.connection, timeout=1.0))
        answers = {name: future.result() for name, future in running.items()}
    assert files[0] < 0.5 and not isinstance(files[1], VolgateError), "files need no libvirt"
    for name, (seconds, answer) in answers.items():
        assert seconds < (7.0 if name in ("repair", "detach") else 1.5), f"{name} took {seconds} s"
        assert isinstance(answer, Unreachable | InDoubt) and answer.retryable and answer.reason in ("DOMAIN_BUSY", "LIBVIRT_LOST"), name
    assert info.result()[0] < 6.0 and not info.result()[1].connected
    assert paths.result()[1][0].last_error
    libvirtd.thaw()
    assert bench.attach(wanted).live
    assert bench.detach(wanted) is DetachOutcome.GONE and bench.detach(attached) is DetachOutcome.GONE
    assert guest.disks() == []


def test_frozen_before_the_first_connection(guest: Guest, libvirtd: PrivateLibvirtd, frozen: Callable[[], None]) -> None:
    host = LocalHost("local", libvirtd.uri)
    frozen()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="hanging"):
        host.find_domain(guest.uuid, timeout=0.5)
    with pytest.raises(Unreachable, match="hanging"):
        host.find_domain(guest.uuid, timeout=0.5)
    assert time.monotonic() - began < 1.5
    connecting = [thread for thread in threading.enumerate() if thread.name == "libvirt-link"]
    libvirtd.thaw()
    assert host.find_domain(guest.uuid, timeout=5).active
    host.close()
    Bench.eventually(lambda: not any(thread.is_alive() for thread in connecting))


def test_long_freeze_ends_in_a_new_connection(
    bench: Bench, guest: Guest, libvirtd: PrivateLibvirtd, frozen: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SOAK:
        monkeypatch.setattr(session, "_KEEPALIVE", (1, 2))
    told: list[HostEvent] = []
    bench.host.subscribe(told.append)
    assert bench.host.find_domain(guest.uuid, timeout=5)
    frozen()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        bench.host.find_domain(guest.uuid, timeout=40)
    assert time.monotonic() - began < 30, "keepalive ends what would wait for ever"
    libvirtd.thaw()
    bench.eventually(lambda: [e.kind for e in told].count(EventKind.RECONNECTED) == 2)
    assert bench.host.find_domain(guest.uuid, timeout=5).active


def test_close_answers_who_waits_and_ends_the_threads(
    guest: Guest, libvirtd: PrivateLibvirtd, pool_dir: Path, frozen: Callable[[], None]
) -> None:
    bench = Bench(libvirtd, pool_dir)
    plans = [bench.plan(guest.uuid, bench.volume(f"v{n}")) for n in range(3)]
    assert bench.host.find_domain(guest.uuid, timeout=5)
    keepers = [thread for thread in threading.enumerate() if thread.name in ("libvirt-link", "libvirt-listeners")]
    assert keepers
    frozen()
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(bench.host.attach, wanted, timeout=4.0) for wanted in plans]
        bench.eventually(lambda: sum(future.running() for future in running) == 3)
        time.sleep(0.2)
        began = time.monotonic()
        bench.host.close()
        assert time.monotonic() - began < 3.0
        errors = [future.exception() for future in running]
    reasons = sorted(error.reason for error in errors if isinstance(error, VolgateError))
    assert reasons == ["DOMAIN_BUSY", "STOPPING", "STOPPING"], "one is inside libvirt, two had not begun"
    with pytest.raises(Unreachable, match="stops"):
        bench.host.find_domain(guest.uuid, timeout=5)
    libvirtd.thaw()
    guest.wait_agent()
    assert guest.live_disks() == [], "whose time was up before it acted does not act"
    Bench.eventually(lambda: not any(thread in threading.enumerate() for thread in keepers))


@pytest.mark.timeout(count(180, soak=1200))
def test_libvirtd_killed_during_calls(bench: Bench, fresh_guest: Guest, libvirtd: PrivateLibvirtd) -> None:
    """Attach and detach in a loop while libvirtd dies again and again: errors are retryable, repeats succeed, nothing stays."""
    wanted = bench.plan(fresh_guest.uuid, bench.volume())
    over = threading.Event()
    done, random = [0], draw()
    seen: list[VolgateError] = []

    def patiently(call: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                call()
            except VolgateError as error:
                assert error.retryable and time.monotonic() < deadline, error
                seen.append(error)
                time.sleep(0.02)
            else:
                done[0] += 1
                return

    def work() -> None:
        while not over.is_set():
            patiently(lambda: bench.attach(wanted))
            patiently(lambda: bench.detach(wanted))

    met = 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        for _ in range(20 * count(3, soak=30)):
            before, errors = done[0], len(seen)
            bench.eventually(lambda before=before: done[0] > before, 60)
            time.sleep(random.uniform(0.0, 0.1))
            libvirtd.kill9()
            libvirtd.start()
            met += len(seen) > errors
            if met >= count(3, soak=30):
                break
        over.set()
        running.result(60)
    print(f"{met} kills met a call, {done[0]} calls done, {len(seen)} errors, all retryable: {sorted({error.reason for error in seen})}")
    assert met >= count(3, soak=30)
    assert not bench.host.repair(fresh_guest.uuid, [wanted.connection.path], apply=False, timeout=10)
    assert fresh_guest.disks() == [] and bench.seen(wanted).qemu is False
    bench.pool.checked()
