"""LVM's own commands die between any two calls of device mapper: no guest waits for ever, and the repeat makes it good."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.groups import Group
from tests.kernel.san import sh
from tests.soaking import SOAK, count, draw
from volgate.backend import PoolContext, SnapshotSpec, VolumeId
from volgate.errors import Unreachable
from volgate.model import Format, Health, Source, SourceKind, Volume, VolumeSpec
from volgate_plugins.lvm import Lvm, LvmSettings

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(3600 if SOAK else 400)]
MIB = 1 << 20
POINTS = count(1, soak=1000)
INSTANCE = "00000000-0000-4000-8000-00000c0f0000"
CHANGING = re.compile(r"DM_(DEV_SUSPEND|DEV_CREATE|DEV_REMOVE|TABLE_LOAD|TARGET_MSG)\b")
FIRST = Path("/usr/local/sbin")  # of PATH


@pytest.fixture(scope="module")
def group() -> Group:
    return Group()


class Dies:
    """Runs a command of LVM's by strace: the calls that change devices are counted, or one of them is its last."""

    def __init__(self, command: str) -> None:
        self._wrapper, self._command = FIRST / command, command
        self._trace = Path(f"/tmp/{command}.trace")

    def points(self, change: Callable[[], object]) -> tuple[list[int], list[int]]:
        """The numbers of the calls, of all its ioctls, that change a device; and which of them tell the thin pool something."""
        self._wrap(f"-o {self._trace}")
        change()
        self._wrapper.unlink()
        found = [line for line in self._trace.read_text().splitlines() if "ioctl(" in line]
        changing = {number: line for number, line in enumerate(found, 1) if CHANGING.search(line)}
        return [*changing], [number for number, line in changing.items() if "TARGET_MSG" in line]

    def at(self, point: int, change: Callable[[], object]) -> None:
        """Make the change with a command that dies before the call."""
        self._wrap(f"-o /dev/null -e inject=ioctl:signal=KILL:when={point}")
        with pytest.raises(Unreachable) as told:
            change()
        self._wrapper.unlink()
        assert told.value.reason == "COMMAND_KILLED"

    def _wrap(self, how: str) -> None:
        FIRST.mkdir(parents=True, exist_ok=True)
        self._wrapper.write_text(f'#!/bin/sh\nexec strace -f -e trace=ioctl {how} /usr/sbin/{self._command} "$@"\n')
        self._wrapper.chmod(0o755)


@dataclass
class Case:
    """A volume of a guest that writes, and one change of it, drawn anew for each point."""

    pool: Lvm
    made: Volume
    cut: SnapshotSpec

    @property
    def id(self) -> VolumeId:
        return VolumeId(self.made.name, self.made.uid)


def opened(group: Group) -> Lvm:
    return Lvm(LvmSettings(group.name, "pool", (group.device,)), PoolContext("local", INSTANCE))


@pytest.fixture
def pool(group: Group) -> Iterator[Lvm]:
    made = opened(group)
    yield made
    for volume in list(made.list_volumes()):
        for cut in made.list_snapshots(VolumeId(volume.name, volume.uid)):
            made.delete_snapshot(VolumeId(volume.name, volume.uid), cut.uid)
        made.delete_volume(VolumeId(volume.name, volume.uid))
    assert group.logicals() == {}


def case(pool: Lvm) -> Case:
    made = pool.create_volume(VolumeSpec(f"v-{uuid.uuid4().hex[:8]}", str(uuid.uuid4()), 4 * MIB, Format.RAW))
    found = Case(pool, made, SnapshotSpec("cut", str(uuid.uuid4())))
    write(found, "first")
    pool.create_snapshot(found.id, SnapshotSpec("before", str(uuid.uuid4())))
    return found


def write(found: Case, text: str) -> None:
    """As a guest: past the host's cache. A device that is suspended would take for ever."""
    path = found.pool.connection(found.id, host="here").path
    sh(f"printf %-4096s '{text}' | dd of={path} bs=4096 count=1 oflag=direct conv=notrunc 2>/dev/null", timeout=30)


def read(path: str) -> str:
    return sh(f"dd if={path} bs=4096 count=1 iflag=direct 2>/dev/null", timeout=30).strip()


def snapshot(found: Case) -> None:
    found.pool.create_snapshot(found.id, found.cut)


def expand(found: Case) -> None:
    found.pool.expand_volume(found.id, 8 * MIB, online=True)


def revert(found: Case) -> None:
    before = found.pool.list_snapshots(found.id)[0]
    found.pool.revert_volume(found.id, before.uid, token=found.cut.uid)


def clone(found: Case) -> None:
    source = Source(SourceKind.VOLUME, found.made.name, found.made.uid)
    found.pool.create_volume(VolumeSpec(f"{found.made.name}.c", found.cut.uid, 4 * MIB, Format.RAW, source=source))


def is_whole(found: Case, change: Callable[[Case], None]) -> None:
    """The repeat came to what the call is for."""
    pool, path = found.pool, found.pool.connection(found.id, host="here").path
    if change is snapshot:
        write(found, "later")
        assert [cut.name for cut in pool.list_snapshots(found.id)] == ["before", "cut"]
        assert read(pool.image(found.id, found.cut.uid).source) == "first"
    elif change is expand:
        assert pool.get_volume(found.made.name).size == int(sh(f"blockdev --getsize64 {path}")) == 8 * MIB
    elif change is clone:
        write(found, "later")
        assert read(pool.connection(VolumeId(f"{found.made.name}.c", found.cut.uid), host="here").path) == "first"
    else:
        assert read(path) == "first" and len(pool.list_snapshots(found.id)) == 1


@pytest.mark.parametrize(("change", "command"), [(snapshot, "lvcreate"), (expand, "lvextend"), (revert, "lvcreate"), (clone, "lvcreate")])
def test_a_command_that_dies_holds_up_no_guest_and_its_repeat_makes_it_good(
    pool: Lvm, group: Group, change: Callable[[Case], None], command: str
) -> None:
    dies, first = Dies(command), case(pool)
    points, told = dies.points(lambda: change(first))
    is_whole(first, change)
    worst = told[-1:]  # the pool was told of something, and not that this was all
    drawn = points if len(points) <= POINTS else sorted({*worst, *draw().sample(points, max(0, POINTS - len(worst)))})
    print(f"{change.__name__}: {len(points)} calls change devices; {command} dies before {drawn}")
    for point in drawn:
        found = case(pool)
        dies.at(point, lambda: change(found))  # noqa: B023  # called at once
        found.pool = opened(group)
        assert found.pool.check().health is Health.OK
        assert "Suspended" not in sh(f"dmsetup info -c --noheadings -o name,suspended | grep ^{group.name}-")
        write(first, "others go on")
        if change is snapshot:
            case(found.pool)  # others are made, although LVM has to tell the pool again of what it has
        if change is not revert:
            write(found, "first")
        change(found)
        is_whole(found, change)
