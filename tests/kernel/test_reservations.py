"""Persistent reservations in the kernel lab: two initiators have one disk, one of them is fenced while it writes."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LIO, PORTALS, Lun, eventually, make_room_for_registrations, sh, two_ways
from volgate.connect import reservations, scsi
from volgate.connect.iscsi import Iscsi
from volgate.connect.iscsi_sessions import Sessions
from volgate.connect.multipath import Multipathd
from volgate.connect.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, Reservation
from volgate.connection import IscsiLun, IscsiPortal
from volgate.errors import NotFound, Precondition, Unsupported
from volgate.hosts.connectors import Connectors
from volgate.hosts.interface import Identity
from volgate.model import Feature
from volgate.secret import Secret

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(300)]
MIB, PAGE = 1 << 20, 4096
SECONDS = 60.0
OTHER = "iqn.2026-01.org.volgate:other"
MINE, THEIRS, THIRD = (Identity(machine_id=name).reservation_key for name in ("mine", "theirs", "third"))


@pytest.fixture(scope="module", autouse=True)
def ways() -> None:
    two_ways()
    make_room_for_registrations()


class Shared:
    """A LUN that this host has through a map of two ways, and another initiator as a disk of its own."""

    def __init__(self) -> None:
        path = Path("/srv/shared.img")
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(32 * MIB)
        self.target = Lun("shared", path, "c".rjust(25, "b")).target
        self.wwid = "36001405" + "c".rjust(25, "b")
        tpg = LIO / f"iscsi/{self.target}/tpgt_1"
        mapped = tpg / f"acls/{OTHER}/lun_1"
        mapped.mkdir(parents=True)
        (mapped / "disk").symlink_to(tpg / "lun/lun_1")
        self.lun = IscsiLun(self.wwid, tuple(IscsiPortal(address, 3260, self.target) for address in PORTALS), 1, 32 * MIB)
        self.mine = Iscsi().connect(self.lun, {}, deadline=time.monotonic() + SECONDS).path
        self.theirs = self._other()
        eventually(lambda: len(Multipathd().find(self.wwid, time.monotonic() + SECONDS).ways) == 2)

    def _other(self) -> str:
        """Log in as the other host; its disk is no way of this host's map."""
        record = f"iscsiadm -m node -T {self.target} -p {PORTALS[0]} -I other"
        sh(f"iscsiadm -m iface -I other -o new; iscsiadm -m iface -I other -o update -n iface.initiatorname -v {OTHER}")
        sh(f"{record} -o new; {record} -o update -n node.session.scan -v manual; {record} --login")
        session = next(one for one in Sessions().all() if one.initiator == OTHER)
        address = scsi.Address(session.host, 0, 0, 1)
        scsi.scan(address)
        eventually(lambda: scsi.disk_at(address))
        name = scsi.disk_at(address)
        Path("/etc/multipath/conf.d").mkdir(parents=True, exist_ok=True)
        Path("/etc/multipath/conf.d/other.conf").write_text(f'blacklist {{\n devnode "^{name}$"\n}}\n')
        sh("multipathd reconfigure")
        eventually(lambda: not scsi.above(name))
        return f"/dev/{name}"


@pytest.fixture(scope="module")
def shared() -> Shared:
    return Shared()


@pytest.fixture
def disks(shared: Shared) -> Iterator[tuple[reservations.Disk, reservations.Disk]]:
    """What both have open; nothing is registered before and after."""
    with reservations.opened(shared.mine) as mine, reservations.opened(shared.theirs) as theirs:
        assert mine.registered() == [] and mine.reservation() is None
        yield mine, theirs
        mine.register(MINE)
        mine.clear(MINE)


def write(path: str, value: int, at: int = 0) -> None:
    """Write a page past every cache. Raises OSError."""
    with mmap.mmap(-1, PAGE) as page:
        page[:] = bytes([value]) * PAGE
        descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            os.pwritev(descriptor, [page], at)
        finally:
            os.close(descriptor)


def refused(path: str) -> bool:
    try:
        write(path, 0xEE, 16 * MIB)
    except OSError as error:
        assert error.errno == errno.EBADE, error
        return True
    return False


def test_who_is_not_registered_does_not_write(shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]) -> None:
    mine, theirs = disks
    for _ in range(2):
        mine.join(MINE)
    assert mine.registered() == theirs.registered() == [MINE, MINE], "one for each way"
    assert mine.reservation() == Reservation(0, WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    write(shared.mine, 1)
    assert refused(shared.theirs)
    with pytest.raises(Precondition) as told:
        theirs.hold(THEIRS)
    assert told.value.reason == "RESERVED"
    theirs.join(THEIRS)
    assert sorted(mine.registered()) == sorted([MINE, MINE, THEIRS]) and not refused(shared.theirs)
    for _ in range(2):
        theirs.leave(THEIRS)
    assert refused(shared.theirs) and not refused(shared.mine)


def test_a_disk_stays_reserved_for_who_stays(shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]) -> None:
    mine, theirs = disks
    mine.join(MINE)
    theirs.join(THEIRS)
    mine.leave(MINE)
    assert mine.reservation() == Reservation(0, WRITE_EXCLUSIVE_ALL_REGISTRANTS), "it was whose call made it, and is everybody's"
    assert refused(shared.mine) and not refused(shared.theirs)
    theirs.leave(THEIRS)
    assert mine.reservation() is None, "it goes with the last"


def test_a_host_that_still_writes_is_fenced_and_the_other_goes_on(
    shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]
) -> None:
    mine, theirs = disks
    theirs.join(THEIRS)  # it holds the reservation itself
    mine.join(MINE)
    written = {"mine": 0, "theirs": 0}
    failed: list[int] = []
    stop = threading.Event()

    def writes(who: str, path: str, at: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                write(path, number % 251, at)
            except OSError as error:
                failed.append(error.errno or 0)
                assert who == "theirs"
            else:
                written[who] += 1

    threads = [threading.Thread(target=writes, args=args) for args in (("mine", shared.mine, 0), ("theirs", shared.theirs, 8 * MIB))]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: min(written.values()) > 3)
        mine.fence(MINE, THEIRS)
        after = dict(written)
        eventually(lambda: len(failed) > 5)
        assert written["theirs"] <= after["theirs"] + 1, "what was under way when it was fenced may have been counted late"
        eventually(lambda: written["mine"] > after["mine"] + 5)
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
    assert set(failed) == {errno.EBADE}
    assert THEIRS not in mine.registered() and mine.reservation() == Reservation(0, WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    mine.fence(MINE, THEIRS)  # once more changes nothing
    assert refused(shared.theirs)
    theirs.join(THEIRS)  # it is let in again by registering
    assert not refused(shared.theirs)


def test_a_host_is_fenced_that_never_registered_and_where_nothing_was_reserved(
    shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]
) -> None:
    mine, _ = disks
    assert not refused(shared.theirs)
    mine.fence(MINE, THEIRS)
    assert refused(shared.theirs) and not refused(shared.mine)
    with pytest.raises(Precondition) as told:
        mine.fence(MINE, MINE)
    assert told.value.reason == "FENCE_SELF"


def test_a_disk_that_is_reserved_for_another_use_is_left_alone(shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]) -> None:
    mine, theirs = disks
    sh(
        f"sg_persist -n --out --register-ignore --param-sark=0x77 {shared.theirs}; sg_persist -n --out --reserve --param-rk=0x77 --prout-type=1 {shared.theirs}"
    )
    with pytest.raises(Precondition) as told:
        mine.join(MINE)
    assert told.value.reason == "RESERVED" and "0x77" in told.value.message
    assert theirs.reservation() == Reservation(0x77, 1)
    theirs.clear(0x77)


def test_what_has_no_reservations_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as told, reservations.opened("/dev/vda") as disk:
        disk.register(MINE)
    assert told.value.reason == "NO_RESERVATIONS"
    with pytest.raises(NotFound), reservations.opened("/dev/nowhere"):
        pass


def test_a_map_has_every_way_registered(shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]) -> None:
    mine, _ = disks
    mine.join(MINE)
    told = sh(f"sg_persist -n --in --read-full-status {shared.mine}")
    assert told.count(HOST) == 2 and OTHER not in told


def test_every_way_of_a_host_writes_to_what_is_reserved(shared: Shared, disks: tuple[reservations.Disk, reservations.Disk]) -> None:
    mine, theirs = disks
    mine.join(MINE)
    theirs.join(THEIRS)
    ways = Multipathd().find(shared.wwid, time.monotonic() + SECONDS).ways
    print([(way, refused(f"/dev/{way.device}")) for way in ways])
    assert not any(refused(f"/dev/{way.device}") for way in ways)


def test_a_host_that_shares_a_disk_has_a_key_there_until_it_lets_go(shared: Shared) -> None:
    def features(_deadline: float) -> tuple[Feature, ...]:
        return ()

    connectors = Connectors("here", Secret, features)
    try:
        connectors.connect(shared.lun, time.monotonic() + SECONDS)
        assert not refused(shared.theirs), "a disk of one host is not reserved"
        for _ in range(2):
            connectors.connect(shared.lun, time.monotonic() + SECONDS, shared=True)
        with reservations.opened(shared.theirs) as theirs:
            (key,) = {*theirs.registered()}
            assert refused(shared.theirs) and theirs.reservation() == Reservation(0, WRITE_EXCLUSIVE_ALL_REGISTRANTS)
            theirs.fence(THEIRS, key)
            assert refused(shared.mine) and not refused(shared.theirs)
            connectors.connect(shared.lun, time.monotonic() + SECONDS)
            assert not refused(shared.mine), "whoever attaches a reserved disk may write to it"
            connectors.release(shared.lun.source, time.monotonic() + SECONDS)
        Iscsi().connect(shared.lun, {}, deadline=time.monotonic() + SECONDS)
        with reservations.opened(shared.mine) as mine:
            assert mine.registered() == [THEIRS]
    finally:
        connectors.close()
