"""What a host has of ours and nothing accounts for, in the kernel lab: it is listed and taken away, what others made is not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LIO, PORTALS, Lun, eventually, sh, two_ways
from volgate.connect import iscsi_records, reconciler, scsi
from volgate.connect.held import Held
from volgate.connect.iscsi import Iscsi
from volgate.connect.iscsi_sessions import Sessions
from volgate.connect.multipath import Multipathd
from volgate.connect.reconciler import Reconciler
from volgate.connection import IscsiLun, IscsiPortal
from volgate.model import Leftover

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(300)]
MIB = 1 << 20
SIZE = 16 * MIB
SECONDS = 60.0
NOTES = Path("/run/volgate")
_numbers = iter(range(1, 100))


@pytest.fixture(scope="module", autouse=True)
def ways() -> None:
    two_ways()


@pytest.fixture(scope="module", autouse=True)
def foreign(ways: None) -> Iterator[list[str]]:
    """A session with a map that an administrator made, and a record of a session that he ended. Nothing of them ever changes."""
    target, ended = Target(), Target()
    record = f"iscsiadm -m node -T {target.lun.target} -p {PORTALS[0]}"
    sh(f"{record} -o new; {record} -o update -n node.session.scan -v manual; {record} --login")
    session = next(one for one in Sessions().all() if one.portal.target == target.lun.target)
    scsi.scan(scsi.Address(session.host, 0, 0, 1))
    eventually(lambda: Multipathd().find(target.wwid, soon()))
    sh(f"iscsiadm -m node -T {ended.lun.target} -p {PORTALS[1]} -o new")
    before = everything()
    assert len(before) >= 4
    yield before
    assert everything() == before


@pytest.fixture(autouse=True)
def soon_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "_APART_SECONDS", 0.2)


class Target:
    """A target with a LUN, and how the gateway reaches it."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.path = Path(f"/srv/left{number}.img")
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("wb") as file:
            file.truncate(SIZE)
        serial = f"{number:x}".rjust(25, "d")
        self.lun, self.wwid = Lun(f"left{number}", self.path, serial), f"36001405{serial}"

    def reached(self, *, multipath: bool = True) -> IscsiLun:
        return IscsiLun(self.wwid, tuple(IscsiPortal(address, 3260, self.lun.target) for address in PORTALS), 1, SIZE, multipath)

    def second(self) -> str:
        """One more LUN of this target; return its WWID."""
        other = Target()
        tpg = LIO / f"iscsi/{self.lun.target}/tpgt_1"
        (tpg / "lun/lun_2").mkdir()
        (tpg / "lun/lun_2/disk").symlink_to(other.lun._store)
        (tpg / f"acls/{HOST}/lun_2").mkdir()
        (tpg / f"acls/{HOST}/lun_2/disk").symlink_to(tpg / "lun/lun_2")
        return other.wwid


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.fixture
def host(foreign: list[str]) -> Iterator[Iscsi]:
    """A connector; what a test leaves is its failure."""
    yield Iscsi()
    eventually(lambda: everything() == foreign)
    assert not [path for path in NOTES.rglob("*") if path.is_file()]


def everything() -> list[str]:
    """Sessions, SCSI devices, maps and records."""
    found = [str(session.portal) for session in Sessions().all()]
    found += [path.name for path in Path("/sys/bus/scsi/devices").glob("[0-9]*:*")]
    found += [one.wwid for one in Multipathd().maps(soon())]
    return sorted(found + [str(path) for path in iscsi_records.RECORDS.rglob("*") if path.is_file()])


def soon(seconds: float = SECONDS) -> float:
    return time.monotonic() + seconds


def aged() -> None:
    """Let all that was noted be an hour old."""
    for path in (*NOTES.rglob("*"), *iscsi_records.RECORDS.rglob("*")):
        if path.is_file():
            os.utime(path, (time.time() - 3600,) * 2)


def told(found: list[Leftover]) -> list[tuple[str, bool]]:
    return [(one.kind, one.removed) for one in found]


def test_what_an_attachment_has_or_may_have_soon_is_accounted_for(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    host.connect(lun, {}, deadline=soon())
    looks = Reconciler(host)
    assert looks.look([], apply=True, deadline=soon()) == [], "an attach that begins is not on record yet"
    aged()
    assert looks.look([lun.source], apply=True, deadline=soon()) == []
    host.disconnect(lun, deadline=soon())


def test_a_lun_that_nothing_accounts_for_goes_at_the_second_look(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    host.connect(lun, {}, deadline=soon())
    aged()
    looks = Reconciler(host)
    assert told(looks.look([], apply=False, deadline=soon())) == [("lun", False)]
    time.sleep(0.3)
    assert told(looks.look([], apply=False, deadline=soon())) == [("lun", False)], "nothing is changed unasked"
    (gone,) = looks.look([], apply=True, deadline=soon())
    assert gone == Leftover("lun", lun.source, "no attachment of this host uses it", removed=True)
    assert looks.look([], apply=True, deadline=soon()) == []


@pytest.mark.parametrize("multipath", [True, False])
def test_what_is_in_use_stays_and_it_is_said_by_whom(host: Iscsi, target: Target, multipath: bool) -> None:
    lun = target.reached(multipath=multipath)
    source = host.connect(lun, {}, deadline=soon())
    if not multipath:
        Multipathd().remove(lun.wwid, soon())  # this daemon makes maps of all it sees
    aged()
    looks = Reconciler(host)
    looks.look([], apply=True, deadline=soon())
    time.sleep(0.3)
    with scsi.opened(source.path):
        (kept,) = looks.look([], apply=True, deadline=soon(3))
        assert not kept.removed and (f"process {os.getpid()}" in kept.problem or "is open" in kept.problem), kept
        assert Path(source.path).exists()
    eventually(lambda: told(seen := looks.look([], apply=True, deadline=soon())) == [("lun", True)] or print(seen))  # udev may look at it


def test_what_came_through_our_sessions_unnoted_goes_too(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    host.connect(lun, {}, deadline=soon())
    Held().forget(lun.source)
    aged()
    looks = Reconciler(host)
    kinds = ["map", "disk", "disk", "session", "session"]
    assert [kind for kind, _ in told(looks.look([], apply=False, deadline=soon()))] == kinds
    time.sleep(0.3)
    looks.look([], apply=True, deadline=soon())
    eventually(lambda: looks.look([], apply=True, deadline=soon()) == [])


def test_a_disk_that_somebody_scanned_into_a_session_of_ours_goes_and_the_session_stays(host: Iscsi, target: Target) -> None:
    lun, other = target.reached(), target.second()
    host.connect(lun, {}, deadline=soon())
    session = Sessions().find(lun.portals[0])
    assert session is not None
    scsi.scan(scsi.Address(session.host, 0, 0, 2))
    eventually(lambda: Multipathd().find(other, soon()))
    aged()
    looks = Reconciler(host)
    assert [kind for kind, _ in told(looks.look([lun.source], apply=False, deadline=soon()))] == ["map", "disk"]
    time.sleep(0.3)
    eventually(lambda: not looks.look([lun.source], apply=True, deadline=soon()))
    assert len(session.devices()) == 1 and Multipathd().find(other, soon()) is None
    host.disconnect(lun, deadline=soon())


def test_a_map_whose_sessions_were_ended_under_it_goes(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    with scsi.opened(host.connect(lun, {}, deadline=soon()).path):
        for portal in lun.portals:
            sh(f"iscsiadm -m node -T {portal.target} -p {portal.place} --logout")
        # while it is open: multipathd takes one that nobody has open away by itself, with the last of its ways
        eventually(lambda: (left := Multipathd().find(lun.wwid, soon())) and not left.ways)
    aged()
    looks = Reconciler(host)
    looks.look([], apply=True, deadline=soon())
    time.sleep(0.3)
    eventually(lambda: not looks.look([], apply=True, deadline=soon()))


def test_a_record_of_ours_goes_after_a_boot_and_is_never_one_that_logs_in_by_itself(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    host.connect(lun, {}, deadline=soon())
    (one, *_) = [record for record in iscsi_records.records() if record.portal in lun.portals]
    assert one.ours and one.startup == "manual"
    one.path.write_text(one.path.read_text().replace("node.startup = manual", "node.startup = automatic"))
    aged()
    looks = Reconciler(host)
    (risen,) = looks.look([lun.source], apply=True, deadline=soon())
    assert risen.kind == "startup" and "automatic" in risen.problem
    time.sleep(0.3)
    assert told(looks.look([lun.source], apply=True, deadline=soon())) == [("startup", True)]
    assert looks.look([lun.source], apply=True, deadline=soon()) == []
    kept = {record.path: record.path.read_text() for record in iscsi_records.records() if record.portal in lun.portals}
    host.disconnect(lun, deadline=soon())
    for path, text in kept.items():  # a boot takes sessions and what is below /run, and leaves these
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    aged()
    assert [kind for kind, _ in told(looks.look([], apply=True, deadline=soon()))] == ["record", "record"]
    time.sleep(0.3)
    assert [done for _, done in told(looks.look([], apply=True, deadline=soon()))] == [True, True]
