"""Leftovers through a real gateway in the kernel lab: `volgate doctor` tells them, the gateway takes them away, attached volumes stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.kernel.attached import CONFIG, DOMAIN, SCSI, WAYS, Gateway, left, ways
from tests.kernel.san import PORTALS, Lun, eventually, sh, two_ways
from volgate.connect import iscsi_records, scsi
from volgate.connect.held import Held
from volgate.connect.iscsi import Iscsi
from volgate.connect.iscsi_sessions import Sessions
from volgate.connection import IscsiLun, IscsiPortal
from volgate.v1 import attachment_pb2

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(600)]
MIB = 1 << 20
SECONDS = 120.0


@pytest.fixture(scope="module", autouse=True)
def network() -> None:
    ways()
    two_ways()


@contextmanager
def serving(seconds: float) -> Iterator[Gateway]:
    """A gateway that looks for leftovers so often."""
    made = Gateway()
    made.server = Server(Path("/srv/gateway/state"), config=CONFIG.format(*WAYS) + f"[limits]\nscan_seconds = {seconds}\n")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serving(2.0) as made:
        yield made


@pytest.fixture
def resting() -> Iterator[Gateway]:
    """A gateway that takes nothing away meanwhile."""
    with serving(3600.0) as made:
        yield made


def stray(digit: str) -> IscsiLun:
    """A LUN that this host has connected, an hour ago, for nobody."""
    path = Path(f"/srv/stray{digit}.img")
    path.write_bytes(bytes(16 * MIB))
    target = Lun(f"stray{digit}", path, digit * 25).target
    lun = IscsiLun("36001405" + digit * 25, tuple(IscsiPortal(address, 3260, target) for address in PORTALS), 1, 16 * MIB)
    Iscsi().connect(lun, {}, deadline=time.monotonic() + SECONDS)
    for file in Path("/run/volgate").rglob("*"):
        os.utime(file, (time.time() - 3600,) * 2)
    return lun


def doctor(gateway: Gateway, *words: str) -> list[dict[str, str]]:
    """What it finds wrong."""
    argv = [sys.executable, "-m", "volgate.cli", "--server", gateway.server.address, "--output", "json", "doctor", *words]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=3 * SECONDS)
    return [one for one in json.loads(done.stdout)["findings"] if not one["ok"]]


def test_a_lun_of_no_attachment_is_told_of_and_goes_and_that_of_an_attachment_stays(gateway: Gateway) -> None:
    volume = gateway.volume("kept", 16 * MIB)
    with gateway.server.client(timeout=SECONDS) as client:
        held = client.attach_volume(volume, DOMAIN, options=SCSI)
        lun = stray("e")
        found = [one for one in doctor(gateway) if "lun" in one["subject"]]
        assert [one["subject"].rpartition(" ")[2] for one in found] == [lun.source], found
        eventually(lambda: lun.source not in Held().sources(), SECONDS)
        assert client.list_paths(held.name).redundancy == attachment_pb2.REDUNDANCY_REDUNDANT
        assert "left on a host" in gateway.server.log.read_text()
        client.detach_volume(held.name)
    assert [one for one in left() if "stray" not in one] == []


class Administrators:
    """A session with a disk that was made by hand, and its records: nothing of it ever changes."""

    def __init__(self) -> None:
        path = Path("/srv/administrators.img")
        path.write_bytes(bytes(16 * MIB))
        self.target = Lun("administrators", path, "c".rjust(25, "c")).target
        node = f"iscsiadm -m node -T {self.target} -p {PORTALS[0]}"
        sh(f"{node} -o new; {node} -o update -n node.session.scan -v manual; {node} --login")
        (self.session,) = [one for one in Sessions().all() if one.portal.target == self.target]
        scsi.scan(scsi.Address(self.session.host, 0, 0, 1))
        eventually(lambda: scsi.disk_at(scsi.Address(self.session.host, 0, 0, 1)), SECONDS)
        self.before = self.now()

    def now(self) -> dict[str, str]:
        """What there is of it."""
        files = [path for path in iscsi_records.RECORDS.rglob("*") if path.is_file() and self.target in str(path)]
        found = {str(path): path.read_text() for path in files}
        return found | {str(one.portal): str(one.number) for one in Sessions().all() if one.portal.target == self.target}


def told(gateway: Gateway, *words: str) -> tuple[int, str]:
    """What the command says to a person, and how it ends."""
    argv = [sys.executable, "-m", "volgate.cli", "--server", gateway.server.address, "doctor", *words]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=3 * SECONDS)
    return done.returncode, done.stdout


def test_doctor_tells_what_is_left_and_takes_away_on_request_what_nobody_uses(resting: Gateway) -> None:
    theirs = Administrators()
    volume = resting.volume("doctors", 16 * MIB)
    with resting.server.client(timeout=SECONDS) as client:
        kept = client.attach_volume(volume, DOMAIN, options=SCSI)
        lun = stray("d")
        status, said = told(resting)
        assert status == 1 and f"lun {lun.source}: no attachment of this host uses it" in said and "volgate doctor --repair" in said
        assert lun.source in Held().sources(), "nothing is changed unasked"
        with scsi.opened(lun.source):
            found = {one["subject"].rpartition(" ")[2]: one for one in doctor(resting, "--repair") if "lun" in one["subject"]}
            assert [*found] == [lun.source] and "let go of what uses it" in found[lun.source]["action"]
            assert "is open" in found[lun.source]["seen"] or f"process {os.getpid()}" in found[lun.source]["seen"]
        status, said = told(resting, "--repair")
        assert f"lun {lun.source}: it was taken away: no attachment used it" in said and lun.source not in Held().sources()
        assert (status, "all is well" in said) in ((0, True), (1, False))
        assert theirs.now() == theirs.before and theirs.target not in said and volume.rpartition("/")[2] not in said
        assert client.list_paths(kept.name).redundancy == attachment_pb2.REDUNDANCY_REDUNDANT
        assert client.detach_volume(kept.name, wait_seconds=60) is None
        client.delete_volume(volume)
    assert theirs.now() == theirs.before
