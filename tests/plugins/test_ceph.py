"""The Ceph plugin on a real cluster: what a pool refuses and why, who is named, and that nothing half-made stays."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rbd

from tests.labs.ceph import OTHER_POOL, POOL, CephCluster, new_key
from tests.plugins.ceph_rig import CHUNK, MIB, Pool, open_pool, other_client, until
from volgate.backend import VolumeId
from volgate.errors import (
    Cancelled,
    Denied,
    InUse,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Precondition,
    Unreachable,
    Unsupported,
    VolgateError,
)
from volgate.model import Format, Health, Provisioning
from volgate.names import object_name
from volgate.settings import convert_strictly
from volgate_plugins.ceph_rbd import CephSettings
from volgate_plugins.ceph_rbd.pool import Note


@pytest.fixture
def pool(ceph: CephCluster):
    made = Pool(ceph)
    yield made
    made.close()


@contextlib.contextmanager
def open_elsewhere(pool: Pool, volume):
    client, ioctx = other_client(pool)
    try:
        with rbd.Image(ioctx, volume.object) as image:
            image.write(b"x", 0)
            yield str(client.get_addrs())
    finally:
        ioctx.close()
        client.shutdown()


def refused(kind, reason: str, settings: CephSettings) -> str:
    with pytest.raises(kind) as caught:
        open_pool(settings)
    assert caught.value.reason == reason, caught.value.message
    return caught.value.message


def test_a_wrong_key_a_wrong_user_and_no_key_at_all_are_told_apart(pool: Pool, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text(new_key())
    told = refused(Denied, "CEPH_DENIED", dataclasses.replace(pool.settings, key=f"file:{wrong}"))
    assert "client.volgate" in told and wrong.read_text() not in told
    refused(Denied, "CEPH_DENIED", dataclasses.replace(pool.settings, user="nobody"))
    wrong.write_text("not base64!")
    refused(Precondition, "CEPH_BAD_ADDRESS_OR_KEY", dataclasses.replace(pool.settings, key=f"file:{wrong}"))


def test_a_key_that_may_not_touch_the_pool_is_told_so(pool: Pool):
    key = pool.cluster.new_client(f"narrow{pool.namespace[1]}", mon="profile rbd", osd=f"profile rbd pool={OTHER_POOL}")
    settings = dataclasses.replace(pool.settings, user=key.stem, key=f"file:{key}")
    assert "profile rbd" in refused(Denied, "CEPH_DENIED", settings)


def test_a_missing_pool_namespace_and_data_pool_are_named(pool: Pool):
    for change in ({"pool": "nowhere", "namespace": ""}, {"namespace": "nowhere"}, {"data_pool": "nowhere"}):
        assert "nowhere" in refused(NotFound, "CEPH_POOL_MISSING", dataclasses.replace(pool.settings, **change))


def test_another_cluster_and_another_gateways_pool_are_refused(pool: Pool):
    fsid = str(uuid.uuid4())
    assert fsid in refused(Precondition, "CEPH_OTHER_CLUSTER", dataclasses.replace(pool.settings, fsid=fsid))
    open_pool(dataclasses.replace(pool.settings, fsid=pool.cluster.fsid)).close()
    with pytest.raises(Precondition) as caught:
        open_pool(pool.settings, name="other")
    assert caught.value.reason == "POOL_FOREIGN" and "'p'" in caught.value.message


def test_monitors_that_do_not_answer_are_given_up_in_time(pool: Pool):
    settings = dataclasses.replace(pool.settings, monitors=("127.0.0.1:1",), connect_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(Unreachable):
        open_pool(settings)
    assert time.monotonic() - began < 20


def test_a_pool_that_lost_its_marker_is_down_and_not_taken_for_an_empty_one(pool: Pool):
    made = pool.create("a")
    with pool.ioctx() as ioctx:
        ioctx.remove_object("volgate.pool")
    for call in (lambda: pool.backend.get_volume("missing"), lambda: pool.delete(dataclasses.replace(made, name="missing"))):
        with pytest.raises(Precondition) as caught:
            call()
        assert caught.value.reason == "POOL_MARKER_MISSING"
    assert pool.backend.check().health is Health.DOWN
    refused(Precondition, "POOL_MARKER_MISSING", pool.settings)


def test_an_image_that_is_open_elsewhere_is_not_deleted_nor_reverted_and_its_user_is_named(pool: Pool):
    made = pool.create("a")
    cut = pool.cut(made)
    with open_elsewhere(pool, made) as address:
        assert [(holder.address, holder.locks) for holder in pool.backend.holders(pool.id(made))] == [(address, True)]
        with pytest.raises(InUse) as caught:
            pool.backend.revert_volume(pool.id(made), cut.uid, token="t")
        assert address in caught.value.message and caught.value.holders[0].detail == address
        assert pool.backend.expand_volume(pool.id(made), 2 * MIB, online=True).size == 2 * MIB
        online = pool.cut(made, "online")
        assert online.size == 2 * MIB
        for one in (cut, online):
            pool.backend.delete_snapshot(pool.id(made), one.uid)
        with pytest.raises(InUse) as caught:
            pool.delete(made)
        assert address in caught.value.message
        assert pool.backend.get_volume("a").uid == made.uid
    assert pool.backend.holders(pool.id(made)) == []
    pool.delete(made)
    until(lambda: not pool.left())


def test_clones_outlive_their_source_and_its_image_goes_with_the_last_of_them(pool: Pool):
    made = pool.create("a", 2 * CHUNK)
    pool.write(made, b"first")
    cut = pool.cut(made)
    pool.write(made, b"later")
    of_snapshot, of_volume = pool.clone("b", made, cut), pool.clone("c", made)
    assert (of_snapshot.depth, pool.backend.children(pool.id(made))) == (1, ())
    pool.backend.delete_snapshot(pool.id(made), cut.uid)
    pool.delete(made)
    with pytest.raises(NotFound):
        pool.backend.get_volume("a")
    assert (pool.read(of_snapshot, 5), pool.read(of_volume, 5)) == (b"first", b"later")
    for one in (of_snapshot, of_volume):
        assert not pool.backend.get_volume(one.name).problem
        pool.delete(one)
    until(lambda: not pool.left())


def test_a_snapshot_of_others_holds_its_volume_and_is_named(pool: Pool):
    made = pool.create("a")
    with pool.ioctx() as ioctx, rbd.Image(ioctx, made.object) as image:
        image.create_snap("nightly")
    assert pool.backend.list_snapshots(pool.id(made)) == []
    with pytest.raises(InUse, match="nightly"):
        pool.delete(made)


def test_the_tag_of_a_clone_that_others_made_is_not_believed(pool: Pool):
    made = pool.create("a")
    pool.cut(made)
    with pool.ioctx() as ioctx:
        with rbd.Image(ioctx, made.object) as image:
            snapshot = next(iter(image.list_snaps()))["name"]
        pool.cluster.admin.conf_set("rbd_default_clone_format", "2")
        rbd.RBD().clone(ioctx, made.object, snapshot, ioctx, "foreign-clone")
    assert [volume.uid for volume in pool.backend.list_volumes()] == [made.uid]
    assert [found.locator for found in pool.backend.list_foreign()] == ["foreign-clone"]


def test_a_family_that_grows_too_deep_or_has_too_many_snapshots_goes_on_as_copies(ceph: CephCluster):
    pool = Pool(ceph, max_depth=1, max_snapshots=3)
    try:
        first = pool.create("a", CHUNK)
        pool.write(first, b"data")
        second = pool.clone("b", first)
        spec = pool.spec("c", CHUNK, source=pool.spec("x").source)
        assert (second.depth, pool.backend.bytes_to_copy(spec)) == (1, 0)
        third = pool.clone("c", second)
        assert (third.depth, pool.read(third, 4)) == (0, b"data")
        for number in range(2):
            pool.cut(first, f"s{number}")
        with pytest.raises(OutOfSpace) as caught:
            pool.cut(first, "s2")
        assert caught.value.reason == "SNAPSHOT_LIMIT"
        copied = pool.clone("d", first)
        assert (copied.depth, pool.read(copied, 4)) == (0, b"data")
    finally:
        pool.close()


def test_a_used_up_quota_is_told_and_nothing_half_made_stays_and_deletes_go_on(ceph: CephCluster, tmp_path):
    pool = Pool(ceph, OTHER_POOL, operation_seconds=5.0)
    try:
        full, kept = pool.create("full", 4 * CHUNK), pool.create("kept")
        filling = pool.create("filling", 4 * CHUNK, incomplete=True)
        cut = pool.cut(full)
        pool.write(full, b"x" * CHUNK)
        ceph.set_quota(MIB, OTHER_POOL)

        def create() -> VolgateError | None:
            try:
                pool.delete(pool.create("late"))
            except OutOfSpace as error:
                return error
            return None

        refusal = until(create)
        assert refusal.reason == "QUOTA_EXCEEDED" and "late" in refusal.message
        path = tmp_path / "image"
        path.write_bytes(b"y" * CHUNK)
        with pytest.raises(OutOfSpace):
            pool.backend.fill_from_file(pool.id(filling), str(path), Format.RAW, lambda _done: None)
        assert pool.backend.capacity().free == 0
        assert {volume.name for volume in pool.backend.list_volumes()} == {"full", "kept", "filling"}
        pool.backend.delete_snapshot(pool.id(full), cut.uid)
        for one in (full, kept, filling):
            pool.delete(one)
        until(lambda: not pool.left())
    finally:
        ceph.set_quota(0, OTHER_POOL)
        pool.close()
    until(lambda: "full" not in str(ceph.command("osd dump")["pools"][-1]["flags_names"]))


def test_a_limit_on_what_is_promised_holds_when_many_ask_at_once(ceph: CephCluster):
    pool = Pool(ceph, oversubscription=0.001)
    try:
        limit = pool.backend.capacity().limit
        size = limit // 3 // MIB * MIB

        def create(number: int) -> bool:
            try:
                pool.create(f"v{number}", size)
            except OutOfSpace:
                return False
            return True

        with ThreadPoolExecutor(6) as threads:
            assert sum(threads.map(create, range(6))) == 3
        assert pool.backend.capacity().provisioned <= limit
        with pytest.raises(OutOfSpace):
            pool.backend.expand_volume(
                pool.id(pool.backend.get_volume(next(iter(pool.backend.list_volumes())).name)), 2 * size, online=False
            )
    finally:
        pool.close()


def test_a_deleted_volume_comes_back_from_the_trash_until_its_time_has_come(ceph: CephCluster):
    pool = Pool(ceph, trash_seconds=3600.0)
    try:
        made = pool.create("a", labels={"team": "x"})
        pool.write(made, b"kept")
        pool.delete(made)
        (found,) = pool.backend.list_foreign()
        assert found.locator.startswith("trash:") and "kept until" in found.reason
        spec = pool.spec("back")
        told = [pool.backend.adopt_volume(found.locator, spec) for _ in range(2)]
        assert told[0] == told[1] == pool.backend.get_volume("back")
        assert (told[0].labels, pool.read(told[0], 4), pool.rows()) == ({"team": "x"}, b"kept", [])
        pool.delete(told[0])
    finally:
        pool.close()
    later = Pool(ceph, namespace=pool.namespace, trash_seconds=0.0)
    try:
        with later.ioctx() as ioctx:  # its time has come
            key = next(key for key in ceph.rows(ioctx, "volgate.pool") if key.startswith("purge."))
            with contextlib.closing(_Op(ioctx)) as op:
                ioctx.set_omap(op.it, (key,), (b"1",))
                ioctx.operate_write_op(op.it, "volgate.pool")
        assert later.backend.check().health is Health.OK
        until(lambda: not later.left())
    finally:
        later.close()


class _Op:
    def __init__(self, ioctx) -> None:
        self.ioctx, self.it = ioctx, ioctx.create_write_op()

    def close(self) -> None:
        self.ioctx.release_write_op(self.it)


def test_an_image_of_another_format_is_unpacked_into_the_volume_without_a_copy_of_it(ceph: CephCluster, tmp_path: Path):
    for folder in (tmp_path, staging := tmp_path / "staging"):
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
    pool = Pool(ceph, staging=str(staging))
    try:
        raw, packed, most = tmp_path / "raw", tmp_path / "packed", [0]
        with raw.open("wb") as file:
            file.truncate(64 * MIB)
            for offset in (0, 3 * CHUNK - 4096, 40 * MIB):
                os.pwrite(file.fileno(), b"volgate\n" * (CHUNK // 8), offset)
        subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", raw, packed], check=True)
        packed.chmod(0o644)
        made = pool.create("a", 64 * MIB, incomplete=True)

        def look(_done: float) -> None:
            there = sum(path.stat().st_blocks * 512 for path in staging.rglob("*"))
            most.append(there)

        pool.backend.fill_from_file(pool.id(made), str(packed), Format.QCOW2, look)
        pool.backend.extract_to_file(pool.id(made), "", str(tmp_path / "back"), lambda _done: None)
        assert (tmp_path / "back").read_bytes() == raw.read_bytes()
        assert len(most) > 4 and max(most) < MIB, "nothing of it is put aside"
        assert pool.backend.get_volume("a").allocated <= 5 * CHUNK, "what is empty stays empty"
        assert not list(staging.iterdir())
        with pytest.raises(Cancelled):
            pool.backend.fill_from_file(pool.id(made), str(packed), Format.QCOW2, _stop)
        pool.backend.fill_from_file(pool.id(made), str(packed), Format.QCOW2, look)
        assert not list(staging.iterdir())
    finally:
        pool.close()


def _stop(done: float) -> None:
    if done:
        raise Cancelled("enough")


def test_a_name_that_a_rename_left_when_it_died_is_in_nobodys_way(pool: Pool):
    spec = pool.spec("a")
    image = object_name(spec.name, spec.uid)
    with pool.ioctx() as ioctx:
        rbd.RBD().create(ioctx, "foreign-a", MIB)
        held = ioctx.read("rbd_id.foreign-a")
        ioctx.write_full(f"rbd_id.{image}", held)  # it died before the directory had the new name
        made = pool.backend.adopt_volume("foreign-a", spec)
        pool.delete(made)
        until(lambda: not pool.left())
        for again in (True, False):
            rbd.RBD().create(ioctx, "foreign-a", MIB)
            held = ioctx.read("rbd_id.foreign-a")
            with pool.backend._store.use() as link:
                pool.backend._store.pool.begin(link, image, Note(uid=spec.uid, adopted="foreign-a"))
            rbd.RBD().rename(ioctx, "foreign-a", image)
            ioctx.write_full("rbd_id.foreign-a", held)  # it died after that
            if again:
                pool.delete(pool.backend.adopt_volume("foreign-a", spec))
            else:
                pool.backend.delete_volume(VolumeId(spec.name, spec.uid))
                assert rbd.RBD().list(ioctx) == ["foreign-a"]
                rbd.RBD().remove(ioctx, "foreign-a")
            until(lambda: not pool.left())
            assert not [one.key for one in ioctx.list_objects() if one.key.startswith("rbd_id.")]


def test_an_image_that_is_in_use_is_not_adopted(pool: Pool):
    with pool.ioctx() as ioctx:
        rbd.RBD().create(ioctx, "foreign-a", MIB)
        with rbd.Image(ioctx, "foreign-a"), pytest.raises(InUse):
            pool.backend.adopt_volume("foreign-a", pool.spec("a"))
    assert pool.backend.adopt_volume("foreign-a", pool.spec("a")).name == "a"
    assert pool.rows() == []


def test_layout_data_pool_and_striping_are_as_the_pool_says(ceph: CephCluster):
    pool = Pool(ceph, data_pool=OTHER_POOL, object_size=MIB, stripe_unit=64 << 10, stripe_count=4, features=("layering",))
    try:
        made = pool.create("a", CHUNK)
        pool.write(made, b"x" * MIB)
        with pool.ioctx() as ioctx, rbd.Image(ioctx, made.object) as image:
            assert (image.stat()["obj_size"], image.stripe_unit(), image.stripe_count()) == (MIB, 64 << 10, 4)
            with ceph.ioctx(pool="others") as other:
                assert image.data_pool_id() == other.get_pool_id()
        assert pool.backend.capacity().provisioned == CHUNK
        pool.delete(pool.clone("b", made))
        pool.delete(made)
        until(lambda: not pool.left())
    finally:
        pool.close()


def test_the_connection_names_the_very_image_and_no_key(pool: Pool):
    made = pool.create("a")
    told = pool.backend.connection(pool.id(made), host="h")
    with pool.ioctx() as ioctx, rbd.Image(ioctx, told.image) as image:
        assert (told.image_id, told.fsid, told.pool_id) == (image.id(), pool.cluster.fsid, ioctx.get_pool_id())
    assert (told.pool, told.namespace, told.user, told.uid, told.size) == (POOL, pool.namespace, "volgate", made.uid, MIB)
    assert pool.cluster.key_file.read_text() not in repr(told)


def test_thick_volumes_and_other_formats_are_refused(pool: Pool):
    with pytest.raises(Unsupported):
        pool.create("a", provisioning=Provisioning.THICK)
    with pytest.raises(Unsupported):
        pool.backend.create_volume(dataclasses.replace(pool.spec("a"), format=Format.QCOW2))
    with pytest.raises(OutOfRange):
        pool.create("a", 1 << 60)
    assert pool.left() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("monitors", []),
        ("monitors", ["localhost"]),
        ("monitors", ["::1:3300"]),
        ("object_size", 3 << 20),
        ("stripe_unit", 100),
        ("features", ["exclusive-lock"]),
        ("features", ["layering", "fast-diff"]),
        ("features", ["layering", "magic"]),
        ("operation_seconds", 0.1),
        ("trash_seconds", -1),
        ("transfers", 0),
        ("user", ""),
    ],
)
def test_settings_that_make_no_sense_are_named(field: str, value):
    table = {"monitors": ["127.0.0.1:3300"], "user": "u", "key": "file:/k", "pool": "p", field: value}
    with pytest.raises(VolgateError) as caught:
        convert_strictly(table, CephSettings, "pools.p").check()
    assert caught.value.field == field
