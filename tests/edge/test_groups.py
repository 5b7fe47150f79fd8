"""Groups of snapshots and changed blocks on the wire, with the simulated array, which outlives the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.deeds import prepared
from tests.edge.place import CONFIG, MIB, Place
from tests.edge.wire import refused
from tests.plugins.memory_rig import Array, until
from volgate.edge import validate
from volgate.v1 import host_pb2, operation_pb2, snapshot_pb2, volume_pb2

Group, Changes = snapshot_pb2.CreateSnapshotGroupRequest, volume_pb2.ListChangedBlocksRequest
PAGE = 4096


@pytest.fixture(scope="module")
def array(tmp_path_factory) -> Iterator[Array]:
    made = Array(tmp_path_factory.mktemp("array"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def place(array, tmp_path_factory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"), CONFIG + f'[pools.sim]\nkind = "memory"\nsocket = "{array.socket}"\n')
    made.start()
    yield made
    made.wire.channel.close()
    assert made.server.stop() == 0


def volumes(place: Place, count: int = 3) -> list[volume_pb2.Volume]:
    return [place.volume(4 * MIB, pool="sim") for _ in range(count)]


def members(made: list[volume_pb2.Volume], name: str = "g") -> dict[str, str]:
    return {volume.name.rpartition("/")[2]: name for volume in made}


def cuts(place: Place, volume: volume_pb2.Volume) -> list[snapshot_pb2.Snapshot]:
    return list(place.wire.snapshots.ListSnapshots(snapshot_pb2.ListSnapshotsRequest(parent=volume.name), timeout=30).snapshots)


def write(array: Array, volume: volume_pb2.Volume, *pages: int, value: bytes = b"\1") -> None:
    """Write pages as a guest would."""
    (path,) = array.root.glob(f"volumes/{volume.name.rpartition('/')[2]}.*/0000.raw")
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE)
            file.write(value * PAGE)


def snapshot(place: Place, volume: volume_pb2.Volume, name: str) -> None:
    place.wire.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(volume=volume.name, snapshot_id=name), timeout=30)


# -- groups


def test_a_group_is_answered_by_volume_and_each_snapshot_is_an_ordinary_one(place):
    made = volumes(place)
    answer = place.wire.snapshots.CreateSnapshotGroup(Group(pool="pools/sim", snapshots=members(made), labels={"a": "b"}), timeout=30)
    assert [cut.name for cut in answer.snapshots] == sorted(f"{volume.name}/snapshots/g" for volume in made)
    assert answer.operation.state == operation_pb2.OPERATION_STATE_DONE and answer.operation.target == "pools/sim" and answer.operation.uid
    assert [cuts(place, volume) for volume in made] == [[cut] for volume in made for cut in answer.snapshots if volume.name in cut.name]
    place.wire.snapshots.DeleteSnapshot(snapshot_pb2.DeleteSnapshotRequest(name=answer.snapshots[0].name), timeout=30)
    assert sum(len(cuts(place, volume)) for volume in made) == 2


def test_a_repeat_is_the_same_group_and_another_one_finds_the_names_taken(place):
    made = volumes(place)
    asked = Group(pool="pools/sim", snapshots=members(made), request_id=place.name("group"))
    first = place.wire.snapshots.CreateSnapshotGroup(asked, timeout=30)
    assert place.wire.snapshots.CreateSnapshotGroup(asked, timeout=30) == first
    asked.request_id = ""
    said = refused(place.wire.snapshots.CreateSnapshotGroup, asked)
    assert said.code == "ALREADY_EXISTS" and "may be of another moment" in said.message
    assert [len(cuts(place, volume)) for volume in made] == [1, 1, 1]


def test_nothing_is_cut_if_one_of_them_cannot_be(place):
    made = volumes(place)
    snapshot(place, made[-1], "g")
    held = prepared(place, made[0].name)
    said = refused(place.wire.snapshots.CreateSnapshotGroup, Group(pool="pools/sim", snapshots=members(made[:2])))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "IN_USE") and held in [name for _, name, _ in said.holders]
    plan = place.wire.snapshots.CreateSnapshotGroup(
        Group(pool="pools/sim", snapshots=members(made[:2]), validate_only=True), timeout=30
    ).plan
    assert (list(plan.steps), list(plan.blockers)) == (["cut"], [held])
    assert refused(place.wire.snapshots.CreateSnapshotGroup, Group(pool="pools/sim", snapshots=members(made[1:]))).code == "ALREADY_EXISTS"
    wrong = Group(pool="pools/sim", snapshots=members(made[1:2]), volume_uids={made[1].name.rpartition("/")[2]: made[0].uid})
    assert refused(place.wire.snapshots.CreateSnapshotGroup, wrong).reason == "UID_MISMATCH"
    assert refused(place.wire.snapshots.CreateSnapshotGroup, Group(pool="pools/main", snapshots={"x": "g"})).code == "UNIMPLEMENTED"
    assert [len(cuts(place, volume)) for volume in made] == [0, 0, 1]


@pytest.mark.parametrize("after", [False, True], ids=["before-the-cut", "after-the-cut"])
def test_a_group_that_was_under_way_when_the_gateway_died_is_cut_once(place, array, after):
    made = volumes(place)
    asked = Group(pool="pools/sim", snapshots=members(made), request_id=place.name("killed"))
    array.fault("hang", "create_snapshot_group", count=1, after=after)
    running = place.wire.snapshots.CreateSnapshotGroup.future(asked, timeout=60)
    until(lambda: not array.status().faults)
    place.server.kill9()
    array.ask("clear_faults", int, verb="*")
    assert running.exception() is not None
    place.server.start()
    answer = place.wire.snapshots.CreateSnapshotGroup(asked, timeout=60, wait_for_ready=True)
    assert [cuts(place, volume) for volume in made] == [[cut] for volume in made for cut in answer.snapshots if volume.name in cut.name]
    place.rest()


# -- changed blocks


def test_what_changed_is_listed_page_by_page(place, array):
    (made,) = volumes(place, 1)
    write(array, made, 0, 1, 5)
    snapshot(place, made, "old")
    write(array, made, 1, 9, 900, value=b"\2")
    snapshot(place, made, "new")
    write(array, made, 0, value=b"\0")

    def listed(**asked) -> list[tuple[int, int, bool]]:
        found, token = [], ""
        while True:
            page = place.wire.volumes.ListChangedBlocks(Changes(name=made.name, page_size=1, page_token=token, **asked), timeout=30)
            assert len(page.extents) <= 1 and page.size_bytes == 4 * MIB
            found += [(extent.offset // PAGE, extent.length // PAGE, extent.zero) for extent in page.extents]
            if not (token := page.next_page_token):
                return found

    assert listed(base_snapshot="old", snapshot=f"{made.name}/snapshots/new", exact=True) == [(1, 1, False), (9, 1, False), (900, 1, False)]
    assert listed(base_snapshot="new", exact=True, uid=made.uid) == [(0, 1, True)]
    assert listed(snapshot="old", exact=True) == [(0, 2, False), (5, 1, False)]
    assert listed(base_snapshot="old", snapshot="new") == [(0, 256, False), (768, 256, False)]


def test_pages_are_of_the_same_objects_or_refused(place, array):
    (made,) = volumes(place, 1)
    write(array, made, 0, 7)
    snapshot(place, made, "s")
    asked = Changes(name=made.name, snapshot="s", page_size=1, exact=True)
    asked.page_token = place.wire.volumes.ListChangedBlocks(asked, timeout=30).next_page_token
    place.wire.snapshots.DeleteSnapshot(snapshot_pb2.DeleteSnapshotRequest(name=f"{made.name}/snapshots/s"), timeout=30)
    assert refused(place.wire.volumes.ListChangedBlocks, asked).code == "NOT_FOUND"
    snapshot(place, made, "s")
    assert refused(place.wire.volumes.ListChangedBlocks, asked).reason == "UID_MISMATCH"
    for cursor in ("x", "1", "1:2:3", "-1:a:b:c", "1:a:b:c:d", "٣:a:b:c"):
        asked.page_token = validate.page_token("changes", asked, cursor)
        assert refused(place.wire.volumes.ListChangedBlocks, asked).reason == "BAD_PAGE_TOKEN"


def test_what_cannot_be_compared_is_refused_with_the_reason(place):
    (made,) = volumes(place, 1)
    for name in ("old", "new"):
        snapshot(place, made, name)
    backwards = refused(place.wire.volumes.ListChangedBlocks, Changes(name=made.name, base_snapshot="new", snapshot="old"))
    assert (backwards.code, backwards.reason) == ("FAILED_PRECONDITION", "BASE_NOT_OLDER")
    assert refused(place.wire.volumes.ListChangedBlocks, Changes(name=made.name, base_snapshot="none")).code == "NOT_FOUND"
    other = place.volume()
    said = refused(place.wire.volumes.ListChangedBlocks, Changes(name=other.name))
    assert said.code == "UNIMPLEMENTED" and "ChangedBlocks" in said.message


def test_the_gateway_s_own_host_is_not_fenced(place):
    said = refused(place.wire.hosts.FenceHost, host_pb2.FenceHostRequest(name="hosts/lab", addresses=["192.0.2.1"]))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "FENCE_SELF")
    assert place.wire.hosts.UnfenceHost(host_pb2.UnfenceHostRequest(name="hosts/lab"), timeout=30).host.name == "hosts/lab"
    assert Path(place.server.log).read_text().count("FENCE_SELF")
    for sure in (False, True):
        unknown = host_pb2.UnfenceHostRequest(name="hosts/nobody", assume_restarted=sure)
        assert refused(place.wire.hosts.UnfenceHost, unknown).code == "NOT_FOUND"
