"""The facets of a pool on a real array process."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugins.directory_rig import io
from tests.plugins.memory_rig import MIB, Array, Pool
from volgate.backend import PoolContext, SnapshotSpec, VolumeId, capabilities
from volgate.connect.local import connect
from volgate.errors import (
    AlreadyExists,
    Cancelled,
    Denied,
    InUse,
    InvalidRequest,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Precondition,
    Unreachable,
    Unsupported,
)
from volgate.model import Format, Health, PathState, Provisioning, VolumeState
from volgate.settings import convert_strictly
from volgate_plugins.memory import Memory, MemorySettings

PAGE = Path(__file__).parents[2] / "docs/memory.md"


@pytest.fixture
def array(tmp_path):
    made = Array(tmp_path / "array")
    yield made
    made.stop()
    assert "Traceback" not in made.said()


@pytest.fixture
def pool(array):
    return array.pool()


def test_every_facet_of_a_raw_array_is_there(pool):
    assert capabilities(pool.backend) == (
        *("Resizes", "Snapshots", "Reverts", "Clones", "Measures", "DataPath", "Adopts", "Relabels", "PathsSeen"),
        *("Groups", "ChangedBlocks", "Fences"),
    )
    traits = pool.backend.traits
    assert (traits.formats, traits.online_snapshots, traits.independent_clones) == ((Format.RAW,), "", False)


def test_create_read_list_delete_leaves_nothing(pool, array):
    ids = [pool.create(name, 5000, labels={"a": "ü"}) for name in ("z", "a.b", "a", "a-b")]
    assert pool.names() == ["a", "a-b", "a.b", "z"]
    found = pool.backend.get_volume("z")
    assert (found.size, found.requested_size, found.uid, found.labels) == (8192, 5000, ids[0].uid, {"a": "ü"})
    for one in ids:
        pool.backend.delete_volume(one)
        pool.backend.delete_volume(one)
    assert array.objects() == set()
    with pytest.raises(NotFound):
        pool.backend.get_volume("z")


def test_a_list_is_whole_across_its_pages(pool):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(pool.create, (f"v{n:04d}" for n in range(1203))))
    assert pool.names() == [f"v{n:04d}" for n in range(1203)]


def test_a_repeat_gives_the_same_and_another_uid_is_refused(pool):
    spec = pool.spec("a")
    first = pool.backend.create_volume(spec)
    assert pool.backend.create_volume(spec) == first
    with pytest.raises(AlreadyExists):
        pool.create("a")
    pool.backend.delete_volume(VolumeId("a", str(uuid.uuid4())))
    assert pool.backend.get_volume("a").uid == first.uid
    with pytest.raises(NotFound):
        pool.backend.connection(VolumeId("a", str(uuid.uuid4())), host="h")


def test_the_gateway_proves_the_connection_and_qemu_opens_it(pool):
    volume = pool.create("a")
    found = pool.backend.connection(volume, host="h")
    assert connect(found).path == found.path
    io("raw", f"write -P 7 0 {MIB}", found.path, "-t", "none")
    assert pool.read(volume, MIB) == b"\7" * MIB
    for folder in Path(found.path).parents[0:3]:
        assert folder.stat().st_mode & 0o777 == 0o711, folder
    assert Path(found.path).stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_created_is_refused_and_leaves_nothing(pool, array):
    source = pool.create("source", 2 * MIB)
    before = array.objects()
    for size in (0, -1, (1 << 50) + 1):
        with pytest.raises(OutOfRange):
            pool.create("a", size)
    with pytest.raises(Unsupported):
        pool.create("a", format=Format.QCOW2)
    with pytest.raises(OutOfRange):
        pool.clone("a", source)
    with pytest.raises(NotFound):
        pool.clone("a", source, str(uuid.uuid4()), size=2 * MIB)
    with pytest.raises(NotFound):
        pool.clone("a", VolumeId("source", str(uuid.uuid4())), size=2 * MIB)
    assert array.objects() == before


def test_expansion_keeps_what_was_written_and_never_shrinks(pool):
    volume = pool.create("a")
    pool.write(volume, b"data")
    assert pool.backend.expand_volume(volume, 2 * MIB - 5, online=False).size == 2 * MIB
    assert pool.backend.expand_volume(volume, MIB, online=False).size == 2 * MIB
    assert (pool.read(volume, 4), pool.read(volume, MIB, MIB)) == (b"data", bytes(MIB))
    with pytest.raises(OutOfRange):
        pool.backend.expand_volume(volume, (1 << 50) + 1, online=False)


def test_an_online_expansion_notes_the_room_and_leaves_the_file_to_qemu(pool):
    volume = pool.create("a")
    assert pool.backend.expand_volume(volume, 3 * MIB, online=True).size == MIB
    assert pool.backend.capacity().provisioned == 3 * MIB
    os.truncate(pool.backend.connection(volume, host="h").path, 3 * MIB)
    assert pool.backend.get_volume("a").size == 3 * MIB


def test_snapshots_reverts_and_their_order(pool):
    volume = pool.create("a")
    pool.write(volume, b"one")
    first = pool.snapshot(volume, "s1")
    pool.write(volume, b"two")
    pool.backend.expand_volume(volume, 2 * MIB, online=False)
    second = pool.snapshot(volume, "s2")
    pool.write(volume, b"six")
    assert [(s.name, s.size) for s in pool.backend.list_snapshots(volume)] == [("s1", MIB), ("s2", 2 * MIB)]
    assert [pool.read(volume, 3, snapshot=uid) for uid in (first, second)] == [b"one", b"two"]
    assert pool.backend.revert_volume(volume, first, token="t1").size == MIB
    assert pool.read(volume, 3) == b"one"
    pool.write(volume, b"new")
    pool.backend.revert_volume(volume, first, token="t1")
    assert pool.read(volume, 3) == b"new", "a known token changes nothing more"
    pool.backend.revert_volume(volume, second, token="t2")
    assert (pool.read(volume, 3), pool.backend.get_volume("a").size) == (b"two", 2 * MIB), "the newer snapshot stayed"
    pool.backend.delete_snapshot(volume, first)
    pool.backend.delete_snapshot(volume, first)
    assert pool.read(volume, 3, snapshot=second) == b"two"


def test_repeats_of_snapshots(pool):
    volume = pool.create("a")
    spec = SnapshotSpec("s", str(uuid.uuid4()), {"k": "v"}, quiesced=True)
    first = pool.backend.create_snapshot(volume, spec)
    assert pool.backend.create_snapshot(volume, spec) == first
    assert (first.labels, first.quiesced, first.volume_uid) == ({"k": "v"}, True, volume.uid)
    with pytest.raises(AlreadyExists):
        pool.snapshot(volume, "s")
    with pytest.raises(NotFound):
        pool.backend.revert_volume(volume, str(uuid.uuid4()), token="t")


def test_clones_are_independent_in_content_and_hold_their_parents(pool):
    volume = pool.create("a")
    pool.write(volume, b"one")
    cut = pool.snapshot(volume, "s")
    of_cut, of_volume = pool.clone("b", volume, cut), pool.clone("c", volume, size=2 * MIB)
    pool.write(volume, b"two")
    assert pool.backend.bytes_to_copy(pool.spec("x")) == 0
    assert pool.read(of_cut, 3) == pool.read(of_volume, 3) == b"one"
    assert pool.backend.get_volume("c").size == 2 * MIB
    assert pool.backend.children(volume) == ["b", "c"]
    with pytest.raises(InUse) as caught:
        pool.backend.delete_snapshot(volume, cut)
    assert [holder.name for holder in caught.value.holders] == ["b"]
    pool.backend.delete_volume(of_cut)
    pool.backend.delete_snapshot(volume, cut)
    with pytest.raises(InUse) as caught:
        pool.backend.delete_volume(volume)
    assert [holder.name for holder in caught.value.holders] == ["c"]
    pool.backend.delete_volume(of_volume)
    pool.backend.delete_volume(volume)


def test_independent_clones_outlive_their_parents(tmp_path):
    array = Array(tmp_path / "array", "--independent-clones")
    pool = array.pool()
    assert pool.backend.traits.independent_clones
    volume = pool.create("a")
    pool.write(volume, b"one")
    cut = pool.snapshot(volume, "s")
    child = pool.clone("b", volume, cut)
    assert pool.backend.children(volume) == []
    pool.backend.delete_snapshot(volume, cut)
    pool.backend.delete_volume(volume)
    assert pool.read(child, 3) == b"one"
    array.stop()


def test_capacity_tells_the_truth_and_is_not_exceeded(tmp_path):
    array = Array(tmp_path / "array", "--capacity", str(8 * MIB), "--oversubscription", "2")
    pool = array.pool()
    empty = pool.backend.capacity()
    assert (empty.total, empty.free, empty.provisioned, empty.limit) == (8 * MIB, 8 * MIB, 0, 16 * MIB)
    thick = pool.create("thick", 5 * MIB, provisioning=Provisioning.THICK)
    assert pool.backend.get_volume("thick").allocated == 5 * MIB
    assert pool.backend.capacity().free == 3 * MIB
    with pytest.raises(OutOfSpace):
        pool.create("more", 4 * MIB, provisioning=Provisioning.THICK)
    with pytest.raises(OutOfSpace):
        pool.snapshot(thick, "s")
    with pytest.raises(OutOfSpace) as caught:
        pool.create("thin", 12 * MIB)
    assert caught.value.reason == "OVERSUBSCRIBED"
    thin = pool.create("thin", 11 * MIB)
    with pytest.raises(OutOfSpace):
        pool.backend.expand_volume(thin, 12 * MIB, online=False)
    pool.write(thin, b"x" * 3 * MIB)
    assert pool.backend.capacity().free == 0
    assert pool.backend.check().health is Health.DEGRADED
    pool.backend.delete_volume(thick)
    assert (pool.backend.capacity().free, pool.backend.capacity().provisioned) == (5 * MIB, 11 * MIB)
    assert pool.backend.check().health is Health.OK
    array.stop()


def test_parallel_creations_never_promise_too_much(tmp_path):
    array = Array(tmp_path / "array", "--capacity", str(10 * MIB), "--oversubscription", "1")
    pool = array.pool()

    def one(number: int) -> int:
        try:
            pool.create(f"v{number}", provisioning=Provisioning.THICK if number % 2 else Provisioning.THIN)
        except OutOfSpace:
            return 0
        return 1

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(one, range(40))) == 10
    assert pool.backend.capacity().provisioned == 10 * MIB
    array.stop()


def test_ten_equal_creations_at_once_are_one(pool, array):
    spec = pool.spec("a")
    with ThreadPoolExecutor(10) as threads:
        found = list(threads.map(pool.backend.create_volume, [spec] * 10))
    assert len({volume.created_at for volume in found}) == 1
    assert len([name for name in array.objects() if name.endswith(".raw")]) == 1


def test_an_import_fills_an_incomplete_volume(pool, tmp_path, array):
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    io("qcow2", "write -P 9 65536 4096", str(image))
    volume = pool.create("a", 2 * MIB, incomplete=True)
    assert pool.backend.get_volume("a").state is VolumeState.CREATING
    for refused in (lambda: pool.backend.connection(volume, host="h"), lambda: pool.snapshot(volume, "s"), lambda: pool.clone("b", volume)):
        with pytest.raises(Precondition) as caught:
            refused()
        assert caught.value.reason == "NOT_READY"
    told = []
    for _ in range(2):
        pool.backend.fill_from_file(volume, str(image), Format.QCOW2, told.append)
    assert told[-1] == 1.0
    assert pool.backend.complete(volume).state is VolumeState.READY
    assert pool.backend.complete(volume).size == 2 * MIB
    assert pool.read(volume, 4096, 65536) == b"\t" * 4096
    with pytest.raises(Precondition) as caught:
        pool.backend.fill_from_file(volume, str(image), Format.QCOW2, told.append)
    assert caught.value.reason == "NOT_INCOMPLETE"
    assert not [name for name in array.objects() if name.startswith("staging")]


def test_a_cancelled_import_leaves_the_empty_volume(pool, tmp_path, array):
    image = tmp_path / "image.raw"
    image.write_bytes(b"x" * MIB)
    volume = pool.create("a", incomplete=True)

    def stop(_: float) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        pool.backend.fill_from_file(volume, str(image), Format.RAW, stop)
    assert pool.read(volume, MIB) == bytes(MIB)
    assert not [name for name in array.objects() if name.startswith("staging")]


def test_a_foreign_file_is_listed_and_adopted_as_it_is(pool, array):
    (array.root / "old").write_bytes(b"data" + bytes(MIB - 4))
    (array.root / "odd").write_bytes(b"data")
    assert [(f.locator, f.size, f.format) for f in pool.backend.list_foreign()] == [("odd", 4, Format.RAW), ("old", MIB, Format.RAW)]
    for locator, problem in (
        ("none", NotFound),
        ("odd", Precondition),
        ("../x", InvalidRequest),
        ("", InvalidRequest),
        (".x", InvalidRequest),
    ):
        with pytest.raises(problem):
            pool.backend.adopt_volume(locator, pool.spec("new"))
    spec = pool.spec("new", labels={"a": "b"})
    adopted = pool.backend.adopt_volume("old", spec)
    assert (adopted.size, adopted.labels, adopted.uid) == (MIB, {"a": "b"}, spec.uid)
    assert pool.backend.adopt_volume("old", spec) == adopted
    assert pool.read(VolumeId("new", spec.uid), 4) == b"data"
    assert [f.locator for f in pool.backend.list_foreign()] == ["odd"]


def test_labels_are_replaced_in_the_tag_too(pool):
    volume = pool.create("a", labels={"old": "1"})
    assert pool.backend.relabel_volume(volume, {"new": "2"}).labels == {"new": "2"}
    tag = Path(pool.backend.connection(volume, host="h").tag).read_text()
    assert '"new":"2"' in tag and "old" not in tag and '"instance":"gateway-1"' in tag


def test_paths_fail_and_come_back(pool, array):
    volume = pool.create("a")
    assert [path.state for path in pool.backend.paths(volume)] == [PathState.ACTIVE_OPTIMIZED, PathState.ACTIVE]
    array.ask("fail_port", name="a", problem="cable pulled")
    first = pool.backend.paths(volume)[0]
    assert (first.state, first.last_error, first.errors) == (PathState.FAILED, "cable pulled", 1)
    assert (pool.backend.check().health, pool.backend.connection(volume, host="h").size) == (Health.DEGRADED, MIB)
    array.ask("fail_port", name="b", problem="")
    assert pool.backend.check().health is Health.DOWN
    with pytest.raises(Unreachable):
        pool.backend.connection(volume, host="h")
    for name in "ab":
        array.ask("restore_port", name=name)
    assert pool.backend.check().health is Health.OK


def test_a_volume_whose_file_was_removed_is_listed_as_failed(pool):
    volume = pool.create("a")
    Path(pool.backend.connection(volume, host="h").path).unlink()
    (found,) = pool.backend.list_volumes()
    assert found.state is VolumeState.FAILED and "0000.raw is missing" in found.problem
    with pytest.raises(NotFound):
        pool.backend.connection(volume, host="h")
    pool.backend.delete_volume(volume)
    assert pool.names() == []


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"socket": "array.sock"}, "socket"),
        ({"directory": "bytes"}, "directory"),
        ({"capacity_bytes": 0}, "capacity_bytes"),
        ({"call_seconds": float("inf")}, "call_seconds"),
        ({"oversubscription": -1.0}, "oversubscription"),
        ({"socket": "/s", "capacity_bytes": 5}, "capacity_bytes"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_name(settings, field):
    with pytest.raises(InvalidRequest) as caught:
        Memory.open(MemorySettings(**settings), PoolContext("p", "i"))
    assert caught.value.field == field


def test_every_setting_is_on_the_page_with_its_default():
    rows = re.findall(r"^\| `([a-z_]+)` \| `(.*?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    spelt = {True: "true", False: "false", "": '""', (): "[]"}
    defaults = [(field.name, field.default) for field in dataclasses.fields(MemorySettings)]
    assert rows == [(name, spelt.get(value, str(value))) for name, value in defaults]


def tables() -> list[str]:
    """The configurations that the page and the example show."""
    example = PAGE.parents[1] / "deploy/config-examples/simulator.toml"
    return [
        *re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL),
        example.read_text(encoding="utf-8"),
    ]


@pytest.mark.parametrize("text", tables())
def test_every_table_that_is_shown_is_understood(text):
    table = tomllib.loads(text)["pools"]["sim"]
    assert table.pop("kind") == "memory"
    convert_strictly(table, MemorySettings, "pools.sim").check()


def test_the_commands_of_the_page_do_what_it_says(array, pool):
    pool.create("a")
    (block,) = re.findall(r"^```sh\n(control\(\).*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    script = block.replace("/run/sim/array.sock", str(array.socket)).replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    status, released, cleared, foreign = done.stdout.splitlines()
    assert '"volumes":1' in status and '"effect":"hang"' in status
    assert (released, cleared, foreign) == ("1", "3", f'"{array.root}/old-disk"')
    assert array.process.wait(10) == 0


def test_another_gateway_or_pool_is_refused(array, pool):
    for name, instance in (("p", "gateway-2"), ("q", "gateway-1")):
        with pytest.raises(Precondition) as caught:
            Pool(MemorySettings(socket=str(array.socket)), name, instance)
        assert caught.value.reason == "POOL_FOREIGN"
    assert array.pool().names() == pool.names()


def test_simulated_clients_hold_a_volume_until_they_are_fenced(array):
    pool = array.pool(clients=True)
    held, other = pool.create("held"), pool.create("other")
    assert "Holders" in capabilities(pool.backend)
    array.ask("open_volume", str, volume="held", address="192.0.2.1", locks=True)
    array.ask("open_volume", str, volume="held", address="192.0.2.2", locks=False)
    assert [(one.address, one.locks) for one in pool.backend.holders(held)] == [("192.0.2.1", True), ("192.0.2.2", False)]
    assert pool.backend.holders(other) == []
    pool.backend.fence(["192.0.2.1"], [held])
    assert [one.address for one in pool.backend.holders(held)] == ["192.0.2.2"] and array.status().fenced == ["192.0.2.1"]
    with pytest.raises(Denied):
        array.ask("open_volume", str, volume="held", address="192.0.2.1", locks=True)
    with pytest.raises(Precondition, match="where the gateway itself"):
        pool.backend.fence(["127.0.0.1"], [])
    pool.backend.unfence(["192.0.2.1"])
    array.ask("open_volume", str, volume="held", address="192.0.2.1", locks=True)
