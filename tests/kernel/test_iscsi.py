"""The connector of iSCSI, in the kernel lab: two portals become one proven device, and nothing of it stays."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LIO, PORTALS, Lun, eventually, make_room_for_registrations, sh, two_ways
from volgate.connect import iscsi_records, iscsi_sessions, reservations, scsi
from volgate.connect.held import Held
from volgate.connect.iscsi import Iscsi
from volgate.connect.multipath import Multipathd
from volgate.connection import Chap, IscsiLun, IscsiPortal
from volgate.errors import Denied, InUse, NotFound, Precondition, Unreachable
from volgate.hosts.completion import Completion
from volgate.hosts.connectors import Connectors
from volgate.secret import Secret

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(6), pytest.mark.timeout(240)]
MIB = 1 << 20
SIZE = 32 * MIB
SECONDS = 60.0
PAGE = 4096


@pytest.fixture(scope="module", autouse=True)
def ways() -> None:
    two_ways()
    make_room_for_registrations()


class Target:
    """A LUN with a content of its own, and how the gateway reaches it."""

    def __init__(self, number: int) -> None:
        self.path = Path(f"/srv/volume{number}.img")
        self.path.parent.mkdir(exist_ok=True)
        self.mark = f"volume {number}!".encode().ljust(PAGE, b"\0")
        with self.path.open("wb") as file:
            file.truncate(SIZE)
            file.write(self.mark)
        self.lun = Lun(f"volume{number}", self.path, f"{number:x}".rjust(25, "a"))

    def reached(self, *, multipath: bool = True, size: int = SIZE, chap: Chap | None = None) -> IscsiLun:
        portals = tuple(IscsiPortal(address, 3260, self.lun.target) for address in PORTALS)
        return IscsiLun(self.wwid, portals, 1, size, multipath, chap)

    @property
    def wwid(self) -> str:
        return "36001405" + (self.lun._store / "wwn/vpd_unit_serial").read_text().rpartition(": ")[2].strip().replace("-", "")[:25]


_numbers = iter(range(1, 100))


@pytest.fixture
def target() -> Target:
    return Target(next(_numbers))


@pytest.fixture
def host() -> Iterator[Iscsi]:
    """A connector; what a test leaves is its failure."""
    yield Iscsi()
    assert left() == []


def left() -> list[str]:
    """Sessions, SCSI devices, maps, records and marks of ours."""
    found = [session.portal.target for session in iscsi_sessions.Sessions().all()]
    found += [path.name for path in Path("/sys/bus/scsi/devices").glob("[0-9]*:*")]
    found += [one.wwid for one in Multipathd().maps(time.monotonic() + SECONDS)]
    found += [str(path) for path in records()] + Held().sources()
    return found + ([str(path) for path in iscsi_sessions.OURS.iterdir()] if iscsi_sessions.OURS.exists() else [])


def records() -> list[Path]:
    """What open-iscsi keeps of portals."""
    return [path for path in iscsi_sessions.RECORDS.rglob("*") if path.is_file()]


def soon(seconds: float = SECONDS) -> float:
    return time.monotonic() + seconds


def head(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, PAGE, 0)
    finally:
        os.close(descriptor)


def direct(path: str) -> bytes:
    """The first page, past every cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, PAGE) as page:
            os.preadv(descriptor, [page], 0)
            return bytes(page)
    finally:
        os.close(descriptor)


def test_two_portals_are_one_proven_device_and_nothing_of_it_stays(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    for _ in range(2):
        source = host.connect(lun, {}, deadline=soon())
        assert source.path == f"/dev/disk/by-id/dm-uuid-mpath-{target.wwid}" and head(source.path) == target.mark
    eventually(lambda: [way.checker for way in Multipathd().find(lun.wwid, soon()).ways if way.usable] == ["ready", "ready"])
    assert len(list(iscsi_sessions.Sessions().all())) == 2
    for _ in range(2):
        host.disconnect(lun, deadline=soon())


def test_one_portal_alone_is_a_disk_without_a_map(host: Iscsi, target: Target) -> None:
    lun = target.reached(multipath=False)
    source = host.connect(lun, {}, deadline=soon())
    assert source.path == f"/dev/disk/by-id/scsi-{target.wwid}"
    with scsi.opened(source.path) as descriptor:
        assert scsi.wwid_of(descriptor) == target.wwid and os.pread(descriptor, PAGE, 0) == target.mark
        Multipathd().remove(lun.wwid, soon())  # this daemon makes maps of all it sees
    host.disconnect(lun, deadline=soon())


def test_a_portal_that_is_dead_keeps_the_other_from_nothing(host: Iscsi, target: Target) -> None:
    sh("ip -n storage link set port2 down")
    try:
        lun = target.reached()
        assert head(host.connect(lun, {}, deadline=soon()).path) == target.mark
        assert len(Multipathd().find(lun.wwid, soon()).ways) == 1
    finally:
        sh("ip -n storage link set port2 up")
    assert head(host.connect(lun, {}, deadline=soon()).path) == target.mark, "the second way joins"
    eventually(lambda: len(Multipathd().find(lun.wwid, soon()).ways) == 2)
    host.disconnect(lun, deadline=soon())


def test_a_way_that_was_missing_at_the_attach_comes_by_itself_unless_the_disk_is_reserved(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    sh("ip -n storage link set port2 down")
    try:
        host.connect(lun, {}, deadline=soon())
        rounds = Completion(host, lambda _lun: {})
        assert rounds.run() == [] and ways_to(lun) == 1
        again = time.monotonic()
        assert rounds.run() == [] and time.monotonic() - again < 1.0, "what failed is not tried at once again"
    finally:
        sh("ip -n storage link set port2 up")
    rounds = Completion(host, lambda _lun: {})
    with reservations.opened(lun.source) as disk:
        disk.join(1)
        assert rounds.run() == [] and ways_to(lun) == 1, "a way without a key would fail what is written by it"
        disk.clear(1)
    assert rounds.run() == [lun.source] and rounds.run() == []
    eventually(lambda: ways_to(lun) == 2)
    host.disconnect(lun, deadline=soon())
    assert rounds.run() == [] and left() == [], "what was let go of stays away"


def ways_to(lun: IscsiLun) -> int:
    found = Multipathd().find(lun.wwid, soon())
    return len([way for way in found.ways if way.usable]) if found else 0


def test_a_lun_that_is_another_volume_now_is_refused_and_taken_away(host: Iscsi, target: Target) -> None:
    other = Target(next(_numbers))
    lun = target.reached()
    wrong = IscsiLun(lun.wwid, other.reached().portals, 1, SIZE)
    with pytest.raises(Precondition) as refused:
        host.connect(wrong, {}, deadline=soon())
    assert refused.value.reason == "IDENTITY_MISMATCH" and other.wwid in refused.value.message
    host.disconnect(other.reached(), deadline=soon())
    host.release(wrong.source, deadline=soon())


def test_a_lun_number_used_again_is_refused_or_repaired_where_a_naive_attach_gets_the_wrong_disk(host: Iscsi, target: Target) -> None:
    other = Target(next(_numbers))
    old = target.reached()
    new = IscsiLun(other.wwid, old.portals, 1, SIZE)
    host.connect(old, {}, deadline=soon())
    target.lun.becomes(other.lun)
    by_path = f"/dev/disk/by-path/ip-{PORTALS[0]}:3260-iscsi-{target.lun.target}-lun-1"
    assert direct(by_path) == other.mark, "who trusts the path reads another volume under the old one's name"
    with scsi.opened(by_path) as descriptor:
        assert scsi.wwid_of(descriptor) == target.wwid, "and the kernel still calls it by its old name"
    with pytest.raises(Precondition) as refused:
        host.connect(old, {}, deadline=soon())
    assert refused.value.reason == "IDENTITY_MISMATCH"
    assert direct(host.connect(new, {}, deadline=soon()).path) == other.mark
    eventually(lambda: len(Multipathd().find(new.wwid, soon()).ways) == 2)
    host.release(old.source, deadline=soon())
    assert direct(new.source) == other.mark, "what is let go of takes nothing of the new one away"
    host.release(new.source, deadline=soon())
    assert host.held() == []


def test_a_lun_number_used_again_while_it_is_held_is_repaired_at_the_next_attach(host: Iscsi, target: Target) -> None:
    other = Target(next(_numbers))
    old = target.reached()
    host.connect(old, {}, deadline=soon())
    target.lun.becomes(other.lun)
    new = IscsiLun(other.wwid, old.portals, 1, SIZE)
    assert direct(host.connect(new, {}, deadline=soon()).path) == other.mark
    for source in (old.source, new.source):
        host.release(source, deadline=soon())


def test_a_login_whose_caller_died_is_waited_for_and_ended(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    Held().note(lun)
    sessions = iscsi_sessions.Sessions()
    for portal in lun.portals:
        sessions.begin(portal, None, {}, timeout=SECONDS)
    host.release(lun.source, deadline=soon())
    mark = iscsi_records.mark_of(lun.portals[0])
    mark.write_text(str(lun.portals[0]))  # the call that made it died; nothing came of its login
    os.utime(mark, (0, 0))
    Held().note(lun)
    host.release(lun.source, deadline=soon())


@pytest.mark.parametrize("multipath", [True, False])
def test_who_has_it_open_keeps_it(host: Iscsi, target: Target, multipath: bool) -> None:
    lun = target.reached(multipath=multipath)
    source = host.connect(lun, {}, deadline=soon())
    with scsi.opened(source.path):
        with pytest.raises(InUse) as refused:
            host.disconnect(lun, deadline=soon(3))
        assert lun.wwid in refused.value.message
        assert head(source.path) == target.mark
    host.disconnect(lun, deadline=soon())


def test_a_disk_whose_only_way_died_is_let_go_of(host: Iscsi, target: Target) -> None:
    here = Connectors("here", _no_secret, lambda _deadline: ())
    lun = target.reached(multipath=False)
    here.connect(lun, soon())
    sh("ip -n storage link set port1 down")
    try:
        here.release(lun.source, soon())
        assert left() == []
    finally:
        sh("ip -n storage link set port1 up")
        here.close()


def _no_secret(_reference: str) -> Secret:
    raise AssertionError("nothing here has a secret")


def test_what_does_not_exist_or_is_not_allowed_is_told_apart_in_time(host: Iscsi, target: Target) -> None:
    lun = target.reached()
    for lun_number, portals, kind, reason in (
        (7, lun.portals, Unreachable, "LUN_MISSING"),
        (1, (IscsiPortal(PORTALS[0], 3260, "iqn.2026-01.org.volgate:none"),), NotFound, "ISCSI_TARGET_MISSING"),
        (1, (IscsiPortal(PORTALS[0], 3999, target.lun.target),), Unreachable, "ISCSI_UNREACHABLE"),
    ):
        wanted = IscsiLun(lun.wwid, portals, lun_number, SIZE)
        with pytest.raises(kind) as refused:
            host.connect(wanted, {}, deadline=soon(15))
        assert refused.value.reason == reason, refused.value.message
        host.disconnect(wanted, deadline=soon())


def test_chap_lets_in_who_knows_the_secret_and_nobody_else_reads_it(host: Iscsi, target: Target) -> None:
    acl = LIO / f"iscsi/{target.lun.target}/tpgt_1/acls/{HOST}/auth"
    for name, value in (
        ("userid", "gate"),
        ("password", "correct-horse-12"),
        ("userid_mutual", "disk"),
        ("password_mutual", "battery-staple"),
    ):
        (acl / name).write_text(value)
    (acl.parents[2] / "attrib/authentication").write_text("1")
    chap = Chap("gate", "a", "disk", "b")
    lun = target.reached(chap=chap)
    with pytest.raises(Denied) as refused:
        host.connect(lun, {"a": Secret("wrong-wrong-wrong"), "b": Secret("battery-staple")}, deadline=soon())
    assert refused.value.reason == "ISCSI_DENIED" and "wrong-wrong" not in refused.value.message
    secrets = {"a": Secret("correct-horse-12"), "b": Secret("battery-staple")}
    assert head(host.connect(lun, secrets, deadline=soon()).path) == target.mark
    assert records() and all(path.stat().st_mode & 0o077 == 0 for path in records())
    host.disconnect(lun, deadline=soon())
