"""What is particular to pools of a SAN's LUNs, in the kernel lab; the judge of all backends is in tests/conformance."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LOOPBACK, Shelf
from volgate.backend import PoolContext, VolumeId
from volgate.conformance import picture
from volgate.connection import IscsiLun
from volgate.errors import OutOfSpace, Precondition, Unreachable
from volgate.model import Format, Health, Volume, VolumeSpec, VolumeState
from volgate_plugins.iscsi import Inventory, IscsiSettings, LunSettings, initiator, open_pool

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(300)]
MIB = 1 << 20
SIZES = [4 * MIB, 2 * MIB, 8 * MIB]
INSTANCE = "00000000-0000-4000-8000-00000c0f0000"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf(f"shelf-{uuid.uuid4().hex[:8]}", SIZES)
    yield made


def settings(shelf: Shelf, **more: object) -> IscsiSettings:
    luns = tuple(LunSettings(**lun) for lun in shelf.luns())
    table = {"portals": (LOOPBACK,), "records": f"{shelf.files[0]}.records", "target": "inventory", "initiator": HOST, "luns": luns}
    return IscsiSettings(**{**table, **more})


def opened(shelf: Shelf, **more: object) -> Inventory:
    found = open_pool(settings(shelf, **more), PoolContext("san", INSTANCE))
    assert isinstance(found, Inventory)
    return found


def made(pool: Inventory, name: str, size: int) -> Volume:
    return pool.create_volume(VolumeSpec(name, str(uuid.uuid4()), size, Format.RAW))


def named(volume: Volume) -> VolumeId:
    return VolumeId(volume.name, volume.uid)


def head(file: Path) -> bytes:
    return file.read_bytes()[:14]


def test_the_smallest_that_fits_is_handed_out_wiped_and_wiped_again_when_it_is_returned(shelf: Shelf) -> None:
    pool = opened(shelf)
    volume = made(pool, "a", 3 * MIB)
    assert volume.size == 4 * MIB and head(shelf.files[0]) == bytes(14), "what others left is nobody's"
    assert head(shelf.files[1]) == head(shelf.files[2]) == b"left by others", "and only of what is handed out"
    lun = pool.connection(named(volume), host="me")
    assert isinstance(lun, IscsiLun) and (lun.wwid, lun.lun, lun.size) == (shelf.wwid(1), 1, 4 * MIB)
    assert picture.read(lun) == {}
    picture.write(lun, {0: 7, 4 * MIB - 4096: 9})
    assert head(shelf.files[0]) == b"\7" * 14
    assert (pool.capacity().total, pool.capacity().free) == (14 * MIB, 10 * MIB)
    again = opened(shelf)
    assert [one.name for one in again.list_volumes()] == ["a"]
    again.delete_volume(named(volume))
    assert shelf.files[0].read_bytes() == bytes(4 * MIB) and again.capacity().free == 14 * MIB
    assert made(again, "b", 2 * MIB).size == 2 * MIB
    assert {made(again, "c", MIB).size, made(again, "d", MIB).size} == {4 * MIB, 8 * MIB}
    with pytest.raises(OutOfSpace, match="no free LUN"):
        made(again, "e", MIB)


def test_a_lun_that_is_another_one_than_the_settings_say_is_not_touched(shelf: Shelf) -> None:
    pool = opened(shelf)
    shelf.map(1, 3)
    with pytest.raises(Precondition) as refused:
        made(pool, "a", 3 * MIB)
    assert refused.value.reason == "IDENTITY_MISMATCH" and shelf.wwid(3) in refused.value.message
    assert head(shelf.files[2]) == b"left by others"
    assert pool.check().health is Health.DOWN


def test_a_wipe_that_died_is_ended_before_the_lun_is_anybodys_else(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = opened(shelf)
    asked = VolumeSpec("a", str(uuid.uuid4()), MIB, Format.RAW)
    real = initiator.Unit.sync

    def dies(_: object) -> None:
        raise SystemExit

    def fails(_: object) -> None:
        raise Unreachable("the SAN is gone")

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(initiator.Unit, "sync", dies)
        pool.create_volume(asked)
    assert list(pool.list_volumes()) == [] and not made(pool, "b", MIB).object.startswith(shelf.wwid(2)), "it waits for its repeat"
    volume = pool.create_volume(asked)
    with monkeypatch.context() as patched, pytest.raises(Unreachable):
        patched.setattr(initiator.Unit, "sync", fails)
        pool.delete_volume(named(volume))
    left = pool.get_volume("a")
    assert left.state is VolumeState.DELETING and "delete it again" in left.problem
    assert initiator.Unit.sync is real
    pool.delete_volume(named(volume))
    assert [one.name for one in pool.list_volumes()] == ["b"]


def test_a_san_that_does_not_answer_is_told_in_time(shelf: Shelf) -> None:
    pool = opened(shelf, portals=(f"{LOOPBACK}:3999",), seconds=5.0)
    with pytest.raises(Unreachable) as refused:
        made(pool, "a", MIB)
    assert refused.value.reason == "ISCSI_UNREACHABLE"
    found = pool.check()
    assert found.health is Health.DOWN and "3999" in found.message


def test_a_lun_that_left_the_settings_with_a_volume_is_told(shelf: Shelf) -> None:
    volume = made(opened(shelf), "a", MIB)
    wwid = volume.object.partition(".")[0]
    luns = tuple(LunSettings(**lun) for lun in shelf.luns() if lun["wwid"] != wwid)
    found = opened(shelf, luns=luns).check()
    assert found.health is Health.DEGRADED and wwid in found.message


def test_a_lun_that_was_returned_is_handed_out_last(shelf: Shelf) -> None:
    """Who had it may still have its device."""
    pool = opened(shelf, luns=tuple(replace(LunSettings(**lun), size=2 * MIB) for lun in shelf.luns()))
    seen = []
    for number in range(4):
        volume = made(pool, f"v{number}", MIB)
        seen.append(volume.object.partition(".")[0])
        pool.delete_volume(named(volume))
    assert len({*seen[:3]}) == 3 and seen[3] == seen[0]


def test_records_that_are_not_mounted_are_no_new_pool(shelf: Shelf) -> None:
    pool = opened(shelf)
    made(pool, "a", MIB)
    records = Path(f"{shelf.files[0]}.records")
    hidden = records.rename(f"{records}.elsewhere")
    records.mkdir()
    with pytest.raises(Precondition) as refused:
        opened(shelf, expect_marker=True)
    assert refused.value.reason == "POOL_MARKER_MISSING"
    with pytest.raises(Precondition):
        made(pool, "b", MIB)
    assert pool.check().health is Health.DOWN
    shutil.rmtree(records)
    hidden.rename(records)
    assert [one.name for one in opened(shelf, expect_marker=True).list_volumes()] == ["a"]
