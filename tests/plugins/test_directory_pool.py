"""The pool's directory and its settings: what is ours, what room there is, what is told of it."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace

import pytest

from tests.plugins.directory_rig import MIB, Rig
from volgate.backend import PoolContext
from volgate.errors import InvalidRequest, OutOfSpace, Precondition
from volgate.model import Format, Health
from volgate_plugins.directory import Directory, DirectorySettings, volgate_backends


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool")


def room(folder) -> tuple[int, int]:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def mark(rig, **fields):
    marker = rig.path / ".volgate-pool.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **fields}))


@pytest.mark.parametrize("other", ["gateway-0", "gateway-2"])
def test_the_pool_of_any_other_instance_is_refused(rig, other):
    with pytest.raises(Precondition) as caught:
        Directory.open(rig.settings, PoolContext("p", other))
    assert caught.value.reason == "POOL_FOREIGN"
    mark(rig, instance=other)
    assert rig.backend.check().health is Health.DOWN


@pytest.mark.parametrize("digit", ["0", "f"])
def test_another_pool_that_was_mounted_since_is_refused(rig, digit):
    rig.create("a")
    mark(rig, uid=str(uuid.UUID(digit * 32)))
    with pytest.raises(Precondition) as caught:
        list(rig.backend.list_volumes())
    assert caught.value.reason == "POOL_FOREIGN"


def test_a_damaged_marker_is_told_as_such(rig):
    (rig.path / ".volgate-pool.json").write_text("{")
    with pytest.raises(Precondition) as caught:
        rig.reopen()
    assert caught.value.reason == "POOL_MARKER_DAMAGED"


def test_the_marker_and_the_folders_can_be_read_and_passed_by_whom_they_should(rig):
    marker = rig.path / ".volgate-pool.json"
    assert json.loads(marker.read_bytes())["schema"] == 1 and marker.read_bytes().endswith(b"}\n")
    assert marker.stat().st_mode & 0o777 == 0o644
    assert {path.name: path.stat().st_mode & 0o777 for path in rig.path.iterdir() if path.is_dir()} == {
        "volumes": 0o711,
        ".work": 0o711,
        ".trash": 0o711,
    }


def test_what_a_dead_process_was_making_is_gone_when_the_pool_is_opened(rig):
    before = rig.files()
    (rig.path / ".work" / "image.part").write_bytes(b"x")
    (rig.path / ".work" / "half").mkdir()
    (rig.path / ".work" / "half" / "0000.raw").write_bytes(b"x")
    rig.reopen()
    assert rig.files() == before


def test_the_reserve_is_neither_counted_nor_given_out(still):
    reserve = 8 * MIB
    rig = Rig(still, reserve_bytes=reserve, oversubscription=2.5)
    total, free = room(still)
    found = rig.backend.capacity()
    assert (found.total, found.free, found.limit) == (total - reserve, free - reserve, int(2.5 * (total - reserve)))
    assert total != free
    path = rig.backend.paths(rig.create("a"))[0]
    total, free = room(still)
    assert (path.facts["total"], path.facts["free"], path.facts["layers"]) == (str(total - reserve), str(free - reserve), "1")


def test_a_pool_with_less_than_its_reserve_has_nothing(still):
    rig = Rig(still, reserve_bytes=1 << 40)
    found = rig.backend.capacity()
    assert (found.total, found.free, found.limit) == (0, 0, 0)
    assert rig.backend.check().health is Health.DEGRADED
    for kind in (Format.RAW, Format.QCOW2):
        with pytest.raises(OutOfSpace, match="0 are free"):
            rig.create("a", format=kind)


def test_all_that_is_free_may_be_asked_for_and_a_block_has_to_be(still):
    rig = Rig(still)
    pool = rig.backend._store.pool
    free = room(still)[1]
    pool.require_free(free, "test")
    with pytest.raises(OutOfSpace):
        pool.require_free(free + 1, "test")
    pool.settings = replace(pool.settings, reserve_bytes=free - 4096)
    pool.require_free(0, "test")
    pool.settings = replace(pool.settings, reserve_bytes=free - 4095)
    with pytest.raises(OutOfSpace):
        pool.require_free(0, "test")


def test_settings_that_make_no_sense_are_named(tmp_path):
    good = DirectorySettings(path=str(tmp_path), oversubscription=0, reserve_bytes=0, trash_seconds=0, max_depth=0)
    good.check()
    replace(good, trash_seconds=0.5).check()
    for field in ("oversubscription", "reserve_bytes", "trash_seconds", "max_depth"):
        with pytest.raises(InvalidRequest) as caught:
            replace(good, **{field: -1}).check()
        assert caught.value.field == field
    for field, value in (("path", "relative"), ("default_format", "vmdk"), ("default_format", "RAW")):
        with pytest.raises(InvalidRequest) as caught:
            replace(good, **{field: value}).check()
        assert caught.value.field == field


def test_what_is_not_set_is_as_documented():
    found = DirectorySettings(path="/x")
    assert (found.create, found.default_format, found.oversubscription, found.reserve_bytes) == (True, "qcow2", 10.0, 0)
    assert (found.trash_seconds, found.max_depth, found.expect_marker) == (0, 20, False)


def test_a_pool_may_promise_any_number_without_a_limit(tmp_path):
    rig = Rig(tmp_path / "pool", oversubscription=0)
    rig.create("a", 1 << 45)
    assert rig.backend.capacity().limit == 0 and rig.backend.capacity().provisioned == 1 << 45


def test_the_kind_is_offered_to_the_gateway():
    (offer,) = volgate_backends()
    assert (offer.kind, offer.settings, offer.in_threads) == ("directory", DirectorySettings, True)
