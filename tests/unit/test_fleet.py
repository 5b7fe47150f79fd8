"""When a host counts as live: by what this process heard, and by what another one wrote down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from volgate.hosts.interface import Identity
from volgate.operations.fleet import Fleet
from volgate.store import hosts
from volgate.store.database import Database
from volgate.store.records import HostRecord

DEAD = 0.3


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "volgate.db")
    yield made
    made.close()


def known(**facts) -> Fleet:
    fleet = Fleet({}, None, DEAD)
    fleet.put(HostRecord("h", session="s", **facts))
    return fleet


def test_a_host_is_dead_when_it_was_not_heard_for_that_long():
    fleet = known()
    assert fleet.live("h"), "after a start it may live"
    time.sleep(DEAD)
    assert not fleet.live("h")
    assert fleet.hear("h", "s", connected=True)
    assert fleet.live("h")
    assert not fleet.hear("h", "of an earlier registration")
    time.sleep(DEAD)
    assert not fleet.live("h")


def test_what_another_process_heard_counts_too():
    fleet = known()
    time.sleep(DEAD)
    fleet.told({"h": time.time()})
    assert fleet.live("h") and fleet.recent(time.time())
    time.sleep(DEAD)
    assert not fleet.live("h")
    fleet.told({"h": time.time() + 3600.0})
    fleet.hear("h", "s")
    time.sleep(DEAD)
    assert not fleet.live("h"), "a clock that went back tells nothing"


def test_an_older_heartbeat_does_not_replace_a_newer_one(database):
    def heard(at: float, session: str = "s") -> float:
        database.write(lambda commit: hosts.heard(commit, [HostRecord("h", session=session, last_heartbeat=at)]))
        with database.read() as connection:
            found = hosts.find(connection, "h")
        assert found
        return found.last_heartbeat

    database.write(lambda commit: hosts.put(commit, HostRecord("h", session="s", last_heartbeat=1.0)))
    assert [heard(5.0), heard(3.0), heard(9.0, "another"), heard(7.0)] == [5.0, 5.0, 5.0, 7.0]


def test_hosts_that_share_something_are_found_and_what_is_absent_is_shared_by_all(database):
    for name, iqn in (("a", "iqn.a"), ("b", ""), ("c", "")):
        database.write(lambda commit, name=name, iqn=iqn: hosts.put(commit, HostRecord(name, machine_id=f"m-{name}", iqn=iqn)))
    with database.read() as connection:
        assert [record.name for record in hosts.twins(connection, HostRecord("d", iqn="iqn.a", machine_id="m-c"))] == ["a", "c"]
        assert hosts.twins(connection, HostRecord("d")) == []
        assert hosts.twins(connection, HostRecord("a", machine_id="m-a", iqn="iqn.a")) == [], "a host is no twin of itself"


def test_a_host_has_a_key_for_reservations_that_no_other_has() -> None:
    keys = [Identity(machine_id=name).reservation_key for name in ("a", "b")] + [Identity(iqn="c").reservation_key]
    assert len({*keys}) == 3 and all(0 < key < 1 << 64 for key in keys)
    assert Identity(machine_id="a", boot_id="later", iqn="c").reservation_key == keys[0], "it is the same after a boot"
    assert Identity().reservation_key == 0
