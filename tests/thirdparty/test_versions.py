"""Facets and hooks have versions, one by one: a plugin for an older one works on, what does not fit is refused in one clear line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire
from tests.labs.third_party import installed
from tests.thirdparty.version_1 import Old
from volgate.backend import facets, hooks, versions
from volgate.backend.versions import VERSIONS, Version, unfit, unfit_arguments
from volgate.v1 import pool_pb2, volume_pb2

MIB = 1 << 20


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A gateway that serves the old plugin in a worker, and that knows secrets which the worker does not."""
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site", "old", "tests.thirdparty.version_1"))
    monkeypatch.setenv("VG_LOGIN", "of the gateway's environment")
    pools = [f'[pools.{name}]\nkind = "old"\npath = "{tmp_path}/{name}"\n{more}' for name, more in (
        ("old", 'password = "vault:old"\n'), ("other", 'password = "env:VG_LOGIN"\n'), ("lost", 'password = "vault:new"\n'),
    )]  # fmt: skip
    server = Server(tmp_path / "state", config='[hosts.lab]\nuri = "test:///default"\n' + "".join(pools)).start(timeout=60)
    try:
        with Wire(server.address) as wire:
            yield wire
    finally:
        assert server.stop() == 0


def test_an_old_plugin_is_served(wire, tmp_path):
    made = wire.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/old", volume_id="a", size_bytes=MIB), timeout=30).volume
    for name, space in (("copied", MIB), ("shared", 0)):
        request = volume_pb2.CreateVolumeRequest(pool="pools/old", volume_id=name, source=made.name, validate_only=True)
        assert wire.volumes.CreateVolume(request, timeout=30).plan.space_bytes == space
    request = volume_pb2.CreateVolumeRequest(pool="pools/old", volume_id="copied", source=made.name)
    assert wire.volumes.CreateVolume(request, timeout=30).volume.source == made.name
    assert (tmp_path / "old/.login").read_text() == "open sesame", "its hook was asked, as it wants to be asked"


def test_a_worker_is_told_secrets_that_only_the_gateway_has(wire, tmp_path):
    assert wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/other"), timeout=30).pool.health == pool_pb2.POOL_HEALTH_OK
    assert (tmp_path / "other/.login").read_text() == "of the gateway's environment"


def test_a_secret_that_nobody_knows_keeps_its_pool_down(wire):
    pool = wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/lost"), timeout=30).pool
    assert pool.health == pool_pb2.POOL_HEALTH_DOWN and "vault" in pool.problem


def test_the_suite_of_today_finds_no_fault_with_an_old_plugin(tmp_path):
    words = [str(Path(__file__).with_name("judged_version_1.py")), "--conformance-level", "2", "--conformance-report", f"{tmp_path}/report"]
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", *words], check=False, capture_output=True, text=True, timeout=150)
    told = json.loads((tmp_path / "report").read_text())
    assert ran.returncode == 0 and told["passed"] and told["facets"]["Clones"] == "proven", ran.stdout


def test_every_facet_and_hook_has_a_version():
    asked = {name for name in vars(hooks) if name.startswith("volgate_")}
    assert VERSIONS.keys() == {"Backend", *facets.FACET_NAMES} | asked
    assert all(1 <= version.oldest <= version.now for version in VERSIONS.values())


def test_what_replaced_a_method_is_of_the_facet_and_the_older_one_is_not():
    for older in versions._OLDER:
        (holder,) = [facet for facet in facets._FACETS if older.replaced_by in vars(facet)]
        assert VERSIONS[holder.__name__].now > 1 and not any(hasattr(facet, older.method) for facet in facets._FACETS)


def test_a_class_with_the_newer_method_is_left_alone_and_one_with_neither_stays_abstract():
    class Both(Old):
        def bytes_to_copy(self, spec):
            return 7

    class Neither(facets.Clones):
        pass

    assert Both.bytes_to_copy(None, None) == 7
    assert "bytes_to_copy" in Neither.__abstractmethods__


@pytest.mark.parametrize(("written_for", "told"), [
    ({}, ""),
    ({"Clones": 2, "Resizes": 3}, ""),
    ({"Clones": 4}, "it was written for Clones 4, this volgate has Clones 2 to 3: upgrade volgate"),
    ({"Clones": 1}, "it was written for Clones 1, this volgate has Clones 2 to 3: upgrade the plugin"),
    ({"Resizes": 2}, "it was written for Resizes 2, this volgate has Resizes 3: upgrade the plugin"),
    ({"Teleports": 1}, "it was written for Teleports 1, which this volgate does not have: upgrade volgate"),
])  # fmt: skip
def test_a_version_fits_or_one_line_says_who_is_too_old(written_for, told):
    assert unfit(written_for, {"Clones": Version(3, 2), "Resizes": Version(3, 3)}) == told


def test_an_implementation_may_want_less_than_is_told_and_not_more():
    assert unfit_arguments("volgate_secrets", ["reference"], ["reference", "pool"]) == ""
    told = unfit_arguments("volgate_secrets", ["reference", "host"], ["reference", "pool"])
    assert told == "its volgate_secrets wants host, which volgate_secrets 2 does not tell: upgrade volgate"
