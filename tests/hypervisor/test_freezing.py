"""A guest held still for a storage that cuts a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypervisor.rig import SECONDS, Bench
from tests.labs.domain import Guest
from volgate.errors import Precondition
from volgate.hosts import freezing
from volgate.hosts.journal import JournalledHost
from volgate.store.steps import Steps


@pytest.fixture
def mounted(bench: Bench, guest: Guest) -> Iterator[Guest]:
    """A guest with a file system that can be frozen."""
    wanted = bench.plan(guest.uuid, bench.volume())
    bench.attach(wanted)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk
    guest.run(f"mke2fs {disk.device} >/dev/null 2>&1 && mount {disk.device} /mnt")
    yield guest
    bench.host.thaw(guest.uuid, timeout=SECONDS)
    guest.run("umount /mnt")
    bench.detach(wanted)


def status(guest: Guest) -> str:
    found: str = guest.agent("guest-fsfreeze-status")
    return found


def test_a_guest_is_still_until_it_is_thawed(bench: Bench, mounted: Guest) -> None:
    bench.host.freeze(mounted.uuid, timeout=SECONDS)
    assert status(mounted) == "frozen"
    assert bench.host.thaw(mounted.uuid, timeout=SECONDS) and status(mounted) == "thawed"
    assert not bench.host.thaw(mounted.uuid, timeout=SECONDS), "nobody froze it since"


def test_a_guest_that_nobody_thaws_goes_on_by_itself_and_that_is_told(
    bench: Bench, mounted: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "_SECONDS", 0.5)
    bench.host.freeze(mounted.uuid, timeout=SECONDS)
    bench.eventually(lambda: status(mounted) == "thawed")
    assert not bench.host.thaw(mounted.uuid, timeout=SECONDS)


def test_a_host_that_ends_leaves_no_guest_frozen(bench: Bench, mounted: Guest) -> None:
    other = type(bench.host)("other", bench.host.info().uri)
    other.freeze(mounted.uuid, timeout=SECONDS)
    other.close()
    assert status(mounted) == "thawed"


def test_a_host_that_was_killed_lets_the_guest_go_on_at_its_next_start(bench: Bench, mounted: Guest, tmp_path: Path) -> None:
    steps = Steps(tmp_path / "host.db")
    JournalledHost(bench.host, steps).freeze(mounted.uuid, timeout=SECONDS)
    next_start = JournalledHost(bench.host, steps)
    assert next_start.recover() and status(mounted) == "thawed" and not steps.unfinished()
    next_start.freeze(mounted.uuid, timeout=SECONDS)
    assert next_start.thaw(mounted.uuid, timeout=SECONDS) and not steps.unfinished()
    steps.close()


def test_a_guest_that_is_off_or_has_no_agent_is_refused(bench: Bench, fresh_guest: Guest) -> None:
    fresh_guest.run("(sleep 0.2; killall -9 qemu-ga) >/dev/null 2>&1 </dev/null &")
    bench.eventually(lambda: "state='connected'" not in fresh_guest.domain.XMLDesc())
    for _ in ("without an agent", "off"):
        with pytest.raises(Precondition) as refused:
            bench.host.freeze(fresh_guest.uuid, timeout=SECONDS)
        assert refused.value.reason == "NO_AGENT"
        fresh_guest.destroy()
