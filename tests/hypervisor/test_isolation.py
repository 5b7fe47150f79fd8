"""One domain that hangs holds up no other, and nobody who asks about it longer than he said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hypervisor.rig import Bench
from tests.labs.domain import Guest
from volgate.errors import InDoubt, Unreachable
from volgate.hosts.interface import DetachOutcome
from volgate.model import Bus, Format


def test_stopped_qemu_holds_up_its_own_domain_alone(bench: Bench, new_guest: Callable[[], Guest]) -> None:
    hung, well = new_guest(), new_guest()
    wanted, more, other = (bench.plan(g.uuid, bench.volume(name)) for g, name in ((hung, "a"), (hung, "b"), (well, "c")))
    bench.attach(wanted)
    os.kill(hung.qemu_pid(), signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(bench.attach, more, 2.0)
            bench.eventually(first.running)
            time.sleep(0.3)
            second = pool.submit(bench.attach, bench.plan(hung.uuid, bench.volume("d")), 1.0)
            began = time.monotonic()
            assert bench.attach(other).live and bench.seen(other).live
            assert bench.detach(other) is DetachOutcome.GONE
            assert bench.host.find_domain(hung.uuid, timeout=1).active and len(bench.host.list_domains(timeout=1)) >= 2
            assert time.monotonic() - began < 2.0
            with pytest.raises(Unreachable):
                bench.host.presence(hung.uuid, wanted.alias, wanted.connection.path, timeout=0.5)
            assert isinstance(second.exception(5), Unreachable), "it did not begin: nothing was done"
            assert isinstance(first.exception(5), InDoubt), "it is inside libvirt"
    finally:
        os.kill(hung.qemu_pid(), signal.SIGCONT)
    assert bench.attach(more).live
    for one in (wanted, more):
        assert bench.detach(one) is DetachOutcome.GONE
    assert hung.disks() == [] and well.disks() == []


def test_forty_attaches_and_detaches_at_once(bench: Bench, new_guest: Callable[[], Guest]) -> None:
    guests = [new_guest(), new_guest()]
    plans = [
        bench.plan(guests[n % 2].uuid, bench.volume(f"v{n}", 1 << 20, Format.RAW), bus=Bus.VIRTIO_SCSI if n % 4 < 2 else Bus.VIRTIO_BLK)
        for n in range(24)
    ]

    def cycle(n: int) -> list[object]:
        wanted = plans[n % len(plans)]
        answers: list[object] = [bench.attach(wanted, 60.0).live, bench.attach(wanted, 60.0).live]
        return [*answers, bench.detach(wanted, 60.0)]

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(cycle, range(len(plans)))) == [[True, True, DetachOutcome.GONE]] * len(plans)
    for guest in guests:
        assert guest.disks() == [] and not guest.live_disks()
