"""What stations come to: one that failed stops everything, unless others stand in for it."""

from __future__ import annotations

import pytest

from volgate.model import Path, PathState, Redundancy
from volgate.operations.ways import blocked, redundancy


def station(transport: str, *, failed: bool = False, error: str = "", of: str = "gateway", target: str = "t", **facts: str) -> Path:
    return Path(transport, of, target, "d", PathState.FAILED if failed else PathState.ACTIVE, last_error=error, facts=facts)


FILE = station("file")
TWO = [station("monitor", target="a"), station("monitor", target="b")]
ONE_AWAY = [station("monitor", target="a"), station("monitor", target="b", failed=True, error="b: no answer in time")]
SAFE = station("pool", redundant="yes")
LONE = station("pool", redundant="no")


@pytest.mark.parametrize(
    ("paths", "whole"),
    [
        ([FILE], Redundancy.SINGLE),
        ([station("file", error="nearly full")], Redundancy.DEGRADED),
        ([FILE, station("filesystem", failed=True)], Redundancy.DOWN),
        ([*TWO, SAFE], Redundancy.REDUNDANT),
        ([*TWO, LONE], Redundancy.SINGLE),
        ([*TWO, SAFE, LONE], Redundancy.SINGLE),
        ([TWO[0], SAFE], Redundancy.SINGLE),
        ([*ONE_AWAY, SAFE], Redundancy.DEGRADED),
        ([station("monitor", failed=True), SAFE], Redundancy.DOWN),
        ([*TWO, station("monitor", failed=True, of="host"), SAFE], Redundancy.DOWN),
        ([*TWO, station("pool", error="1 of 8 placement groups are active+undersized", redundant="yes")], Redundancy.DEGRADED),
        ([*TWO, station("pool", failed=True, redundant="yes")], Redundancy.DOWN),
        ([*TWO, SAFE, station("osd", failed=True)], Redundancy.DOWN),
        ([*TWO, SAFE, station("watcher")], Redundancy.REDUNDANT),
    ],
)
def test_stations_come_to(paths: list[Path], whole: Redundancy) -> None:
    assert redundancy(paths) is whole
    assert bool(blocked(paths)) == (whole is Redundancy.DOWN)


def test_what_blocks_is_told_in_the_stations_words() -> None:
    assert blocked([station("monitor", failed=True, error="a: gone"), station("monitor", failed=True, target="b")]) == "a: gone; b"
    assert blocked([*TWO, station("osd", failed=True, error="no OSD serves x")]) == "no OSD serves x"
