"""Groups of snapshots and changed blocks on a real cluster: consistent under two writing clients, whole or not at all, and told exactly."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
import rbd

from tests.labs.ceph import POOL, CephCluster
from tests.soaking import count, draw
from volgate.backend import Extent, GroupMember, PoolContext, SnapshotSpec, VolumeId
from volgate.errors import AlreadyExists, InUse, NotFound, Precondition, VolgateError
from volgate.model import Format, Source, SourceKind, VolumeSpec
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.settings import CephSettings

MIB = 1 << 20
PAGE = 4096


class Pool:
    """A pool in a namespace of its own, and short words for it."""

    def __init__(self, cluster: CephCluster, namespace: str, **settings) -> None:
        self.cluster, self.namespace = cluster, namespace
        table = cluster.table(namespace=namespace, **settings)
        self.backend = CephRbd(CephSettings(**{**table, "monitors": tuple(table["monitors"])}), PoolContext("p", "gateway-1"))

    def create(self, name: str, size: int = 16 * MIB, **more) -> VolumeId:
        spec = VolumeSpec(name=name, uid=str(uuid.uuid4()), size=size, format=Format.RAW, **more)
        self.backend.create_volume(spec)
        return VolumeId(name, spec.uid)

    def group(self, *volumes: VolumeId, uid: str = "", name: str = "g") -> list[str]:
        """Cut a group; its snapshots' uids."""
        return [cut.uid for cut in self.backend.create_snapshot_group(uid or str(uuid.uuid4()), members(*volumes, name=name))]

    def cut(self, volume: VolumeId, name: str) -> str:
        return self.backend.create_snapshot(volume, SnapshotSpec(name, str(uuid.uuid4()))).uid

    @contextlib.contextmanager
    def image(self, volume: VolumeId, **more) -> Iterator[rbd.Image]:
        """An image as another client has it."""
        client = self.cluster.connect()
        try:
            with client.open_ioctx(POOL) as ioctx:
                ioctx.set_namespace(self.namespace)
                with rbd.Image(ioctx, self.backend.get_volume(volume.name).object, **more) as image:
                    yield image
        finally:
            client.shutdown()

    def write(self, volume: VolumeId, data: bytes, offset: int) -> None:
        with self.image(volume) as image:
            image.write(data, offset)
            image.flush()

    def read(self, volume: VolumeId, uid: str, tmp_path) -> bytes:
        path = tmp_path / f"{volume.name}-{uid}"
        self.backend.extract_to_file(volume, uid, str(path), lambda _done: None)
        return path.read_bytes()

    def groups(self) -> list[str]:
        with self.cluster.ioctx(self.namespace) as ioctx:
            return list(rbd.RBD().group_list(ioctx))

    def trashed(self) -> list[str]:
        with self.cluster.ioctx(self.namespace) as ioctx:
            return [entry["name"] for entry in rbd.RBD().trash_list(ioctx)]

    def notes(self) -> dict:
        with self.backend._store.use() as link:
            return self.backend._store.pool.groups(link)

    def changes(self, volume: VolumeId, base: str, newer: str, *, exact: bool, offset: int = 0, length: int = 1 << 40) -> list[Extent]:
        return list(self.backend.changed_blocks(volume, base, newer, offset=offset, length=length, exact=exact))


def members(*volumes: VolumeId, name: str = "g") -> list[GroupMember]:
    """The same members at each call."""
    return [GroupMember(volume, SnapshotSpec(name, str(uuid.uuid5(uuid.UUID(volume.uid), name)), {"a": "b"})) for volume in volumes]


@pytest.fixture
def pool(ceph: CephCluster) -> Iterator[Pool]:
    made = Pool(ceph, ceph.new_namespace())
    yield made
    made.backend.close()


# -- groups


def test_a_group_is_of_one_moment_under_a_writer_to_both(pool, tmp_path):
    first, second = pool.create("first"), pool.create("second")
    stop, wrote, failed = threading.Event(), [0], []

    def write() -> None:
        try:
            with pool.image(first) as one, pool.image(second) as other:
                while not stop.is_set():
                    wrote[0] += 1
                    for image in (one, other):  # the second only once the first has it
                        image.write(wrote[0].to_bytes(8, "big"), 0)
                        image.flush()
        except rbd.Error as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(count(5, soak=50)):
            before = wrote[0]
            cuts = pool.group(first, second, name=f"g{number}")
            one, other = (
                int.from_bytes(pool.read(volume, uid, tmp_path)[:8], "big") for volume, uid in zip((first, second), cuts, strict=True)
            )
            assert before - 1 <= other <= one <= other + 1, "no write that came after one that is missing"
            deadline = time.monotonic() + 30
            while wrote[0] <= one + 1 and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        stop.set()
        writer.join()
    assert not failed and wrote[0] > one, "the writer goes on"


def test_a_group_goes_with_its_last_member_also_when_the_other_volumes_are_purged(pool):
    first, second = pool.create("first"), pool.create("second")
    one, other = pool.group(first, second)
    pool.backend.delete_snapshot(first, one)
    pool.backend.delete_volume(first)
    deadline = time.monotonic() + 60
    while pool.trashed():
        assert time.monotonic() < deadline, "it is not purged"
        time.sleep(0.05)
    assert [cut.uid for cut in pool.backend.list_snapshots(second)] == [other] and len(pool.groups()) == 1
    pool.backend.delete_snapshot(second, other)
    assert pool.groups() == []


def test_a_member_is_an_ordinary_snapshot_and_the_group_goes_with_the_last(pool, tmp_path):
    volumes = [pool.create(name) for name in ("a", "b")]
    for number, volume in enumerate(volumes):
        pool.write(volume, bytes([number + 1]) * PAGE, MIB)
    uid = str(uuid.uuid4())
    cuts = pool.group(*volumes, uid=uid)
    assert pool.group(*volumes, uid=uid) == cuts, "a repeat"
    later = pool.cut(volumes[0], "later")
    assert [cut.uid for cut in pool.backend.list_snapshots(volumes[0])] == [cuts[0], later]
    for volume in volumes:
        pool.write(volume, b"\xff" * PAGE, MIB)
        pool.write(volume, b"\xfe" * PAGE, 9 * MIB)
    assert [pool.read(volume, cut, tmp_path)[MIB] for volume, cut in zip(volumes, cuts, strict=True)] == [1, 2]
    clone = pool.create("c", 32 * MIB, source=Source(SourceKind.SNAPSHOT, "a", volumes[0].uid, "g", cuts[0]))
    held = pool.read(clone, "", tmp_path)
    assert (len(held), held[MIB], held[9 * MIB]) == (32 * MIB, 1, 0) and not pool.backend.list_snapshots(clone)
    pool.backend.expand_volume(volumes[0], 64 * MIB, online=False)
    for _ in range(2):
        assert pool.backend.revert_volume(volumes[0], cuts[0], token="t").size == 16 * MIB
    held = pool.read(volumes[0], "", tmp_path)
    assert (held[MIB], held[9 * MIB]) == (1, 0)
    with pytest.raises(InUse) as told:
        pool.backend.delete_volume(volumes[1])
    assert [holder.name for holder in told.value.holders] == ["g"]
    pool.backend.delete_snapshot(volumes[0], cuts[0])
    assert pool.groups() == [f"volgate.{uid}"], "the other member needs it"
    assert pool.read(volumes[1], cuts[1], tmp_path)[MIB] == 2
    pool.backend.delete_snapshot(volumes[1], cuts[1])
    assert (pool.groups(), pool.notes()) == ([], {})
    pool.backend.delete_volume(volumes[1])


def test_what_stands_in_the_way_of_a_group_is_named_and_nothing_is_cut(pool, ceph):
    volumes = [pool.create(name) for name in ("a", "b")]
    taken = pool.cut(volumes[1], "g")
    with pytest.raises(AlreadyExists):
        pool.group(*volumes)
    pool.backend.delete_snapshot(volumes[1], taken)
    with ceph.ioctx(pool.namespace) as ioctx:
        rbd.RBD().group_create(ioctx, "theirs")
        rbd.Group(ioctx, "theirs").add_image(ioctx, pool.backend.get_volume("b").object)
        with pytest.raises(InUse, match="RBD group theirs"):
            pool.group(*volumes)
        rbd.Group(ioctx, "theirs").remove_image(ioctx, pool.backend.get_volume("b").object)
    with pytest.raises(NotFound):
        pool.group(*volumes, VolumeId("gone", str(uuid.uuid4())))
    assert [pool.backend.list_snapshots(volume) for volume in volumes] == [[], []]
    assert (pool.groups(), pool.notes()) == (["theirs"], {})


KILLED = """
import sys, json
from volgate.backend import GroupMember, PoolContext, SnapshotSpec, VolumeId
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.settings import CephSettings
table, uid, asked = json.loads(sys.argv[1])
backend = CephRbd(CephSettings(**{**table, "monitors": tuple(table["monitors"])}), PoolContext("p", "gateway-1"))
print("ready", flush=True)
backend.create_snapshot_group(uid, [GroupMember(VolumeId(*volume), SnapshotSpec(*cut)) for volume, cut in asked])
print("done", flush=True)
"""


def test_a_call_that_was_killed_anywhere_is_finished_or_taken_back_and_leaves_nothing(pool, ceph):
    rng = draw()
    volumes = [pool.create(name) for name in ("a", "b", "c")]
    table = ceph.table(namespace=pool.namespace)
    for number in range(count(2, soak=60)):
        uid, asked = str(uuid.uuid4()), members(*volumes, name=f"k{number}")
        told = json.dumps([table, uid, [[[m.volume.name, m.volume.uid], [m.spec.name, m.spec.uid]] for m in asked]])
        with subprocess.Popen([sys.executable, "-c", KILLED, told], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout and child.stdout.readline() == "ready\n"
            time.sleep(rng.random() * 0.2)
            os.kill(child.pid, signal.SIGKILL)
        if number % 2:
            cuts = patient(lambda uid=uid, asked=asked: pool.backend.create_snapshot_group(uid, asked))
            assert [cut.uid for cut in cuts] == [member.spec.uid for member in asked]
            assert [[cut.uid for cut in pool.backend.list_snapshots(volume)] for volume in volumes] == [[cut.uid] for cut in cuts]
        for member in asked:
            patient(lambda member=member: pool.backend.delete_snapshot(member.volume, member.spec.uid))
        assert [pool.backend.list_snapshots(volume) for volume in volumes] == [[], [], []]
    for note in pool.notes():  # of calls that died before their first row: the sweep waits ten minutes for those
        with pool.backend._store.use() as link:
            pool.backend._groups.forget(link, f"volgate.{note}")
    assert (pool.groups(), pool.notes()) == ([], {})
    with ceph.ioctx(pool.namespace) as ioctx:
        for volume in volumes:
            with rbd.Image(ioctx, pool.backend.get_volume(volume.name).object, read_only=True) as image:
                assert list(image.list_snaps()) == [] and image.group()["name"] == ""
    for volume in volumes:
        patient(lambda volume=volume: pool.backend.delete_volume(volume))


def patient(act, seconds: float = 60.0):
    """Repeat a call whose dead predecessor still holds the images' locks, as the gateway does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return act()
        except VolgateError as error:
            if time.monotonic() > deadline or not (error.retryable or isinstance(error, InUse)):
                raise
            time.sleep(0.2)


# -- changed blocks


def pages(extents: list[Extent]) -> set[int]:
    return {page for one in extents for page in range(one.offset // PAGE, -(-(one.offset + one.length) // PAGE))}


def differing(old: bytes, new: bytes) -> set[int]:
    """The pages that differ, of the newer one's length."""
    old = old.ljust(len(new), b"\0")
    return {at // PAGE for at in range(0, len(new), PAGE) if old[at : at + PAGE] != new[at : at + PAGE]}


def test_changed_blocks_are_what_a_comparison_of_all_bytes_finds(pool, tmp_path):
    rng = draw()
    parent = pool.create("parent", 24 * MIB)
    for _ in range(20):
        pool.write(parent, rng.randbytes(PAGE), rng.randrange(24 * MIB // PAGE) * PAGE)
    volume = pool.create("v", 32 * MIB, source=Source(SourceKind.SNAPSHOT, "parent", parent.uid, "s", pool.cut(parent, "s")))
    cuts: list[str] = []
    for number in range(5):
        with pool.image(volume) as image:
            for _ in range(rng.randrange(12)):
                page = rng.randrange(32 * MIB // PAGE)
                if rng.random() < 0.3:
                    image.discard(page * PAGE, rng.choice((PAGE, MIB, 4 * MIB)) if page * PAGE < 28 * MIB else PAGE)
                else:
                    image.write(rng.randbytes(PAGE), page * PAGE)
        cuts.append(pool.group(volume, name=f"g{number}")[0] if number == 2 else pool.cut(volume, f"s{number}"))
    held = {uid: pool.read(volume, uid, tmp_path) for uid in (*cuts, "")}
    order = [*cuts, ""]
    for base in ("", *cuts):
        for newer in order[order.index(base) + 1 if base else 0 :]:
            wanted = differing(held[base] if base else b"", held[newer])
            for exact in (True, False):
                found = pool.changes(volume, base, newer, exact=exact)
                assert pages(found) >= wanted, (base, newer, exact)
                assert all(one.data or not any(held[newer][one.offset : one.offset + one.length]) for one in found)
                assert all(a.offset + a.length <= b.offset for a, b in itertools.pairwise(found))
            part = pool.changes(volume, base, newer, exact=True, offset=5 * MIB + PAGE, length=9 * MIB)
            assert pages(part) >= {page for page in wanted if 5 * MIB + PAGE <= page * PAGE < 14 * MIB + PAGE}
            assert all(one.offset >= 5 * MIB + PAGE and one.offset + one.length <= 14 * MIB + PAGE for one in part)
    assert pages(pool.changes(volume, cuts[2], cuts[3], exact=True)) == differing(held[cuts[2]], held[cuts[3]]), "read, from a group's"


def test_an_object_map_that_is_not_valid_changes_no_answer(pool):
    volume = pool.create("v")
    pool.write(volume, b"\1" * PAGE, 8 * MIB - PAGE)  # an object is told as changed beyond the end that it had
    base = pool.cut(volume, "base")
    pool.write(volume, b"\2" * PAGE, 5 * MIB)
    with pool.image(volume) as image:
        for enabled in (False, True):
            image.update_features(rbd.RBD_FEATURE_OBJECT_MAP | rbd.RBD_FEATURE_FAST_DIFF, enabled)
        assert image.flags(), "both are not valid any more"
    newer = pool.cut(volume, "newer")
    for to in (newer, ""):
        assert pool.changes(volume, base, to, exact=True) == [Extent(5 * MIB, PAGE, data=True)]
        (whole,) = pool.changes(volume, base, to, exact=False)
        assert 4 * MIB <= whole.offset <= 5 * MIB and 5 * MIB + PAGE <= whole.offset + whole.length <= 8 * MIB and whole.data
    with pytest.raises(Precondition) as told:
        pool.changes(volume, newer, base, exact=True)
    assert told.value.reason == "BASE_NOT_OLDER"
