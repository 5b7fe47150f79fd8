"""What others' host code is known to do wrong with SANs, each as a test of ours, in the kernel lab. The list is in docs/host-defects.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.san import PORTALS, eventually, sh, two_ways
from tests.kernel.test_iscsi import SECONDS, SIZE, Target, head, left, soon
from volgate.connect.iscsi import Iscsi
from volgate.connect.multipath import Multipathd
from volgate.connection import IscsiPortal
from volgate.errors import VolgateError

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(300)]
_numbers = iter(range(0x100, 0x200))


@pytest.fixture(scope="module", autouse=True)
def ways() -> None:
    two_ways()


@pytest.fixture
def target() -> Target:
    return Target(next(_numbers))


@pytest.fixture
def host() -> Iterator[Iscsi]:
    yield Iscsi()
    assert left() == []


def test_a_target_that_hangs_holds_up_no_attach_of_another(host: Iscsi, target: Target) -> None:
    """One lock for all of a host makes a dead array everybody's trouble."""
    hanging = replace(
        target.reached(), wwid="36001405" + "f" * 25, portals=(IscsiPortal("10.10.1.77", 3260, "iqn.2026-01.org.volgate:hangs"),)
    )
    with ThreadPoolExecutor(1) as other:
        began = time.monotonic()
        waits = other.submit(host.connect, hanging, {}, deadline=soon(40))
        lun = target.reached()
        assert head(host.connect(lun, {}, deadline=soon()).path) == target.mark
        host.disconnect(lun, deadline=soon())
        quick = time.monotonic() - began
        with pytest.raises(VolgateError):
            waits.result(SECONDS)
        print(f"{quick:.1f} s beside one that waited {time.monotonic() - began:.1f} s")
    host.disconnect(hanging, deadline=soon())


def test_a_path_that_is_dead_fails_no_detach(host: Iscsi, target: Target) -> None:
    """A flush of each path, the dead one too, fails or hangs a detach that has nothing to flush there."""
    lun = target.reached()
    source = host.connect(lun, {}, deadline=soon())
    sh("ip -n storage link set port2 down")
    try:
        eventually(lambda: sum(way.usable for way in Multipathd().find(lun.wwid, soon()).ways) == 1)
        assert head(source.path) == target.mark
        host.disconnect(lun, deadline=soon(120))
    finally:
        sh("ip -n storage link set port2 up")
    until = time.monotonic() + 60
    while (found := left()) and time.monotonic() < until:
        time.sleep(0.5)
    assert found == []


def test_a_detach_that_multipathd_hears_of_late_kills_no_attach_after_it(host: Iscsi, target: Target) -> None:
    """The removal of the disk before meets the disk of now, which has its name."""
    lun = target.reached()
    for _ in range(3):
        assert head(host.connect(lun, {}, deadline=soon()).path) == target.mark
        eventually(lambda: len(Multipathd().find(lun.wwid, soon()).ways) == len(PORTALS))
        host.disconnect(lun, deadline=soon())


def test_an_attach_a_detach_and_a_growth_reconfigure_nothing_of_others(host: Iscsi, target: Target) -> None:
    """`multipathd reconfigure` takes over whatever stands in the file meanwhile, for every map of the host."""
    file = Path("/etc/multipath.conf")
    before = file.read_text()
    lun = target.reached()
    file.write_text(before + "\ndefaults {\n  fast_io_fail_tmo 4321\n}\n")
    try:
        source = host.connect(lun, {}, deadline=soon())
        host.grow(source.source, SIZE, deadline=soon())
        host.disconnect(lun, deadline=soon())
        assert "4321" not in sh("multipathd show config local", timeout=SECONDS)
    finally:
        file.write_text(before)


def test_no_record_of_a_session_comes_back_with_the_next_boot(host: Iscsi, target: Target) -> None:
    """With `node.startup = automatic` a host logs in to what was detached long ago."""
    lun = target.reached()
    host.connect(lun, {}, deadline=soon())
    told = "".join(path.read_text() for path in Path("/etc/iscsi/nodes").rglob("*") if path.is_file())
    assert told.count("node.name = ") == told.count("node.startup = manual") == len(PORTALS) and "automatic" not in told.replace(
        "node.startup = manual", ""
    )
    host.disconnect(lun, deadline=soon())
