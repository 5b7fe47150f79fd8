"""Hosts that are kept out of a SAN's LUNs by reservations, in the kernel lab: sessions of libiscsi are the hosts, LIO is the SAN."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LOOPBACK, Shelf, eventually
from volgate.backend import Initiator, PoolContext, VolumeId
from volgate.connection import IscsiPortal
from volgate.errors import Precondition, Unreachable, VolgateError
from volgate.model import Format, Volume, VolumeSpec
from volgate_plugins.iscsi import Inventory, IscsiSettings, LunSettings, initiator, open_pool, reservation

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=3), pytest.mark.timeout(300)]
MIB, PAGE = 1 << 20, 4096
INSTANCE = "00000000-0000-4000-8000-00000c0f0000"
KEYS = reservation.Keys.of(INSTANCE)
X, Y, Z = (Initiator(name, f"iqn.2026-01.org.volgate:{name}", key=key) for name, key in {"x": 0x11, "y": 0x22, "z": 0x33}.items())
STRANGER = 0x77
REGISTER_ANYWAY, RESERVE = 6, 1


class San:
    """A pool of three LUNs, and sessions to them."""

    def __init__(self, stack: ExitStack) -> None:
        """`stack` ends the sessions."""
        self.shelf = Shelf(f"shelf-{uuid.uuid4().hex[:8]}", [2 * MIB] * 3, others=[host.iqn for host in (X, Y, Z)])
        luns = tuple(LunSettings(**lun) for lun in self.shelf.luns())
        records = f"{self.shelf.files[0]}.records"
        self.settings = IscsiSettings(portals=(LOOPBACK,), records=records, target="inventory", initiator=HOST, luns=luns, seconds=20.0)
        self._stack = stack
        self.pool = self.opened()

    def opened(self) -> Inventory:
        found = open_pool(self.settings, PoolContext("san", INSTANCE))
        assert isinstance(found, Inventory)
        return found

    def made(self, name: str, **more: bool) -> Volume:
        return self.pool.create_volume(VolumeSpec(name, str(uuid.uuid4()), 2 * MIB, Format.RAW, **more))

    def number(self, volume: Volume) -> int:
        return next(lun.lun for lun in self.settings.luns if volume.object.startswith(lun.wwid))

    def session(self, number: int, host: Initiator = X) -> initiator.Unit:
        """One of a host."""
        ways = [IscsiPortal(LOOPBACK, 3260, self.shelf.target)]
        return self._stack.enter_context(initiator.reached(host.iqn, ways, number, None, 20.0))

    def head(self, number: int) -> bytes:
        return self.shelf.files[number - 1].read_bytes()[:4]


@pytest.fixture
def san() -> Iterator[San]:
    with ExitStack() as stack:
        yield San(stack)


def named(volume: Volume) -> VolumeId:
    return VolumeId(volume.name, volume.uid)


def write(unit: initiator.Unit, value: int) -> None:
    unit.write(0, bytes([value]) * PAGE)
    unit.sync()


def refused(unit: initiator.Unit) -> bool:
    """Whether it may not write."""
    try:
        write(unit, 0xEE)
    except Precondition as error:
        assert error.reason == "RESERVED", error
        return True
    return False


def register(unit: initiator.Unit, key: int, *, reserves: bool = False, kind: int = 7) -> None:
    """As a host's kernel does."""
    for action in (REGISTER_ANYWAY, *([RESERVE] if reserves else [])):
        mine, other = (0, key) if action == REGISTER_ANYWAY else (key, 0)
        unit.command(
            bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]), writes=mine.to_bytes(8, "big") + other.to_bytes(8, "big") + bytes(8)
        )


def keys(unit: initiator.Unit) -> list[int]:
    told = unit.command(bytes([0x5E, 0, 0, 0, 0, 0, 0, 32, 0, 0]), reads=8192)
    return sorted(int.from_bytes(told[at : at + 8], "big") for at in range(8, 8 + int.from_bytes(told[4:8], "big"), 8))


def test_a_host_without_a_key_that_still_writes_is_kept_out_until_it_is_let_in(san: San) -> None:
    volume = san.made("a")
    other, spare = san.made("b"), san.session(san.number(volume), Z)
    theirs = san.session(san.number(volume))
    done, problems = [0], list[VolgateError]()

    def writes() -> None:
        try:
            while True:
                write(theirs, done[0] % 251)
                done[0] += 1
        except VolgateError as error:
            problems.append(error)

    writer = threading.Thread(target=writes, daemon=True)
    writer.start()
    eventually(lambda: done[0] > 3)
    san.pool.fence_host(X, [named(volume), VolumeId("gone", str(uuid.uuid4()))])
    write_after = san.head(san.number(volume))
    writer.join(60)
    assert not writer.is_alive() and [problem.reason for problem in problems] == ["RESERVED"]
    assert refused(san.session(san.number(volume))) and refused(theirs) and san.head(san.number(volume)) == write_after
    assert theirs.read(0, PAGE)[:4] == write_after, "it may read"
    assert not refused(san.session(san.number(other))), "what it has no attachment of is not reserved"
    for pool in (san.pool, san.opened(), san.pool):
        pool.fence_host(X, [])
    assert refused(spare) and keys(spare) == [KEYS.fence], "a SAN has room for some keys only"
    for _ in range(2):
        san.pool.unfence_host("x")
    assert keys(spare) == [] and not refused(theirs) and san.pool.fenced_hosts() == []


def test_a_host_with_a_key_is_kept_out_and_others_go_on_whoever_made_the_reservation(san: San) -> None:
    volume = san.made("a")
    at = san.number(volume)
    x, y, spare = (san.session(at, host) for host in (X, Y, Z))
    register(x, X.key, reserves=True)
    register(y, Y.key)
    assert not refused(x) and not refused(y) and refused(spare)
    san.pool.fence_host(X, [named(volume)])
    assert refused(x) and not refused(y) and keys(spare) == sorted([Y.key, KEYS.fence])
    register(y, 0)
    assert refused(x) and refused(y), "it stays although nobody has it whom it was made for"
    register(y, Y.key)
    san.pool.unfence_host("x")
    assert refused(x) and not refused(y), "who has it by its key keeps it"
    register(x, X.key)
    assert not refused(x), "and so may others, as hosts do with what is reserved"


def test_a_fence_that_died_with_its_key_alone_on_the_lun_is_made_whole_by_the_next(san: San) -> None:
    volume = san.made("a")
    at = san.number(volume)
    register(san.session(at, Initiator("gateway", HOST)), KEYS.fence)
    theirs, spare = san.session(at), san.session(at, Z)
    assert not refused(theirs)
    san.pool.fence_host(X, [named(volume)])
    assert refused(theirs) and keys(spare) == [KEYS.fence], "it stays with the key that was there, whoever made the reservation"
    san.pool.unfence_host("x")
    assert not refused(theirs) and keys(spare) == []


def test_what_two_hosts_are_kept_out_of_stays_so_until_both_are_let_in(san: San) -> None:
    volume = san.made("a")
    theirs = san.session(san.number(volume))
    for host in (X, Y):
        san.pool.fence_host(host, [named(volume)])
    san.pool.unfence_host("x")
    assert refused(theirs) and san.pool.fenced_hosts() == ["y"]
    san.pool.unfence_host("y")
    assert not refused(theirs)


def test_a_lun_that_is_returned_and_handed_out_again_is_still_kept_from_who_may_write_to_it(san: San, tmp_path: Path) -> None:
    taken = [san.made(name) for name in "abc"]
    volume, theirs = taken[0], san.session(san.number(taken[0]))
    write(theirs, 7)
    san.pool.fence_host(X, [named(volume)])
    san.pool.delete_volume(named(volume))
    assert san.head(san.number(volume)) == bytes(4), "it is wiped although it is reserved"
    again = san.made("d", incomplete=True)
    assert san.number(again) == san.number(volume)
    (tmp_path / "image").write_bytes(b"image".ljust(MIB, b"\0"))
    san.pool.fill_from_file(named(again), str(tmp_path / "image"), Format.RAW, lambda _: None)
    san.pool.complete(named(again))
    assert refused(theirs) and san.head(san.number(again)) == b"imag"
    y = san.session(san.number(again), Y)
    register(y, Y.key)
    assert not refused(y) and keys(y) == sorted([Y.key, KEYS.fence]), "the gateway is there with one key, not with one for each call"
    san.pool.unfence_host("x")
    assert refused(theirs) and not refused(y)


def test_what_dead_hosts_have_left_on_a_lun_goes_with_its_volume(san: San) -> None:
    volume = san.made("a")
    dead, spare = san.session(san.number(volume)), san.session(san.number(volume), Z)
    register(dead, X.key, reserves=True)
    san.pool.delete_volume(named(volume))
    assert keys(spare) == [] and not refused(spare)


def test_a_lun_that_somebody_else_has_reserved_is_not_handed_out(san: San) -> None:
    strangers = [san.session(number) for number in (1, 2, 3)]
    for stranger in strangers:
        register(stranger, STRANGER, reserves=True)
    with pytest.raises(Precondition, match="0x77") as told:
        san.made("a")
    assert told.value.reason == "RESERVED"
    assert [san.head(number) for number in (1, 2, 3)] == [b"left"] * 3 and keys(strangers[0]) == [STRANGER]


def test_a_lun_that_is_reserved_in_another_manner_or_cannot_be_reached_is_told_and_the_others_are_kept(san: San) -> None:
    taken = {san.number(volume): volume for volume in map(san.made, "abc")}
    stranger, theirs = san.session(1, Z), san.session(2)
    register(stranger, STRANGER, reserves=True, kind=1)
    san.shelf.map(3, 1)
    with pytest.raises(Unreachable) as told:
        san.pool.fence_host(X, [named(volume) for volume in taken.values()])
    assert told.value.reason == "FENCE_UNPROVEN"
    assert all(word in told.value.message for word in ("type 1", "0x77", san.shelf.wwid(3)))
    assert refused(theirs) and san.pool.fenced_hosts() == ["x"]
    stranger.command(bytes([0x5F, 3, 0, 0, 0, 0, 0, 0, 24, 0]), writes=STRANGER.to_bytes(8, "big") + bytes(16))
    san.shelf.map(3, 3)
    san.pool.fence_host(X, [])
    assert refused(san.session(1)) and refused(san.session(3)), "those that it was to be kept out of before"
    san.pool.unfence_host("x")
    assert not any(refused(san.session(number)) for number in (1, 2, 3))


def test_a_host_is_not_said_to_be_fenced_while_its_lun_is_not_in_the_settings(san: San) -> None:
    volume = san.made("a")
    whole = san.settings.luns
    object.__setattr__(san.settings, "luns", tuple(lun for lun in whole if lun.lun != san.number(volume)))
    with pytest.raises(Precondition, match="do not have any more"):
        san.opened().fence_host(X, [named(volume)])
    object.__setattr__(san.settings, "luns", whole)
    pool = san.opened()
    assert pool.fenced_hosts() == [], "it was refused before anything was done"
    began = time.monotonic()
    pool.fence_host(X, [named(volume)])
    assert time.monotonic() - began < 60
