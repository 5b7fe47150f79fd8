"""The operator's hooks on a real gateway and a real guest: each does its work; slow, raising or lost, none breaks a call."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from tests.labs.domain import Guest
from tests.labs.third_party import installed
from volgate.v1 import attachment_pb2, pool_pb2, volume_pb2

MIB = 1 << 20
HOOK_SECONDS = 5.0
FAULTS = ("raise", "sleep", "crash")


class Hooked:
    """A gateway with the operator's plugin, and with pools of an old plugin whose login comes from its vault."""

    def __init__(self, folder: Path, server: Server, wire: Wire, guest: Guest) -> None:
        self.folder, self.server, self.wire, self.guest = folder, server, wire, guest

    def order(self, hook: str, word: str) -> None:
        (self.folder / f"{hook}.order").write_text(word)

    def told(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def create(self, name: str, **more: Any) -> volume_pb2.Volume:
        return self.wire.volumes.CreateVolume(creation(name, **more), timeout=60).volume

    def attach(self, volume: volume_pb2.Volume) -> attachment_pb2.Attachment:
        request = attachment_pb2.AttachVolumeRequest(volume=volume.name, host="hosts/lab", domain=self.guest.domain.name())
        return self.wire.attachments.AttachVolume(request, timeout=60).attachment

    def log(self) -> str:
        return self.server.log.read_text()


def creation(name: str, **more: Any) -> volume_pb2.CreateVolumeRequest:
    return volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=name, size_bytes=MIB, **more)


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def hooked(tmp_path: Path, pool_dir: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    folder = tmp_path / "site/hooks"
    folder.mkdir(parents=True)
    installed(tmp_path / "site", "operators", "vgtest_operators", source=Path(__file__).with_name("hooks_under_test.py").read_text())
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site", "old", "tests.thirdparty.version_1"))
    config = f'[hosts.lab]\nuri = "{guest.libvirtd.uri}"\n[pools.main]\nkind = "directory"\npath = "{pool_dir}"\n'
    config += f'[pools.secret]\nkind = "old"\npath = "{tmp_path}/secret"\npassword = "vault:login"\n'
    server = Server(pool_dir.parent / "state", config=config).start(timeout=60)
    try:
        with Wire(server.address) as wire:
            yield Hooked(folder, server, wire, guest)
    finally:
        assert server.stop() == 0
        guest.detach_all()


def test_a_policy_refuses_before_anything_is_recorded(hooked):
    told = refused(hooked.wire.volumes.CreateVolume, creation("v", labels={"tenant": "broke"}))
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "POLICY") and "ask finance" in told.message
    told = refused(hooked.wire.volumes.CreateVolume, creation("v", labels={"tenant": "broke"}, validate_only=True))
    assert told.reason == "POLICY", "a plan is refused as the call would be"
    assert not hooked.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool="pools/main"), timeout=30).volumes
    assert hooked.create("v", labels={"tenant": "rich"}).uid
    asked = hooked.told("admitted")[-1]
    assert asked == {
        "method": "CreateVolume",
        "name": "pools/main/volumes/v",
        "principal": "local",
        "labels": {"tenant": "rich"},
        "size": MIB,
    }


def test_a_repeat_of_what_was_admitted_is_not_asked_about_again(hooked):
    once = {"request_id": uuid.uuid4().hex}
    made = hooked.create("v", **once)
    asked = len(hooked.told("admitted"))
    assert hooked.create("v", **once).uid == made.uid
    assert len(hooked.told("admitted")) == asked


def test_an_audit_is_told_of_every_end(hooked):
    made = hooked.create("v")
    refused(hooked.wire.volumes.ExpandVolume, volume_pb2.ExpandVolumeRequest(name=f"{made.name}x", size_bytes=2 * MIB))
    until(lambda: len(hooked.told("finished")) >= 2)
    ok, failed = hooked.told("finished")
    assert (ok["method"], ok["name"], ok["uid"], ok["outcome"]) == ("CreateVolume", made.name, made.uid, "ok")
    assert ok["operation"].startswith("operations/") and ok["seconds"] > 0 and ok["principal"] == "local"
    assert (failed["method"], failed["outcome"]) == ("ExpandVolume", "NOT_FOUND")


def test_a_disk_is_driven_as_the_plugin_says(hooked):
    attached = hooked.attach(hooked.create("v"))
    (disk,) = hooked.guest.live_disks()
    assert disk.find("driver").get("rerror_policy") == "report"
    (told,) = hooked.told("disks")
    assert told["attachment"] == attached.name and told["volume"] == "pools/main/volumes/v" and told["host"] == "hosts/lab"


@pytest.mark.parametrize("word", ["another", "refused"])
def test_a_disk_that_would_be_another_or_that_libvirt_refuses_is_attached_as_it_was(hooked, word):
    """Another source is found before libvirt sees it; what only libvirt knows to be nonsense is attached without the change."""
    hooked.order("disk", word)
    hooked.attach(hooked.create("v"))
    (disk,) = hooked.guest.live_disks()
    assert disk.find("driver").get("rerror_policy") is None and disk.find("source").get("dev") is None
    assert "passed over" in hooked.log() or "libvirt refuses a disk as plugins changed it" in hooked.log()


def test_a_vault_is_asked_for_the_secret_of_a_pool(hooked, tmp_path):
    pool = hooked.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/secret"), timeout=30).pool
    assert pool.health == pool_pb2.POOL_HEALTH_OK, pool.problem
    assert (tmp_path / "secret/.login").read_text() == "of secret"
    assert "of secret" not in hooked.log()


@pytest.mark.parametrize("word", FAULTS)
@pytest.mark.parametrize("hook", ["admit", "disk", "finished"])
def test_a_hook_that_fails_breaks_no_call(hooked, hook, word):
    hooked.order(hook, word)
    began = time.monotonic()
    attached = hooked.attach(hooked.create("v"))
    assert attached.name and len(hooked.guest.live_disks()) == 1
    assert time.monotonic() - began < 2 * HOOK_SECONDS + 10
    until(lambda: f"volgate_{hook}" in hooked.log())
    (hooked.folder / f"{hook}.order").unlink()
    hooked.guest.detach_all()
    notes = {"admit": "admitted", "disk": "disks", "finished": "finished"}[hook]
    before = len(hooked.told(notes))

    def told() -> bool:
        made = hooked.create(f"w{uuid.uuid4().hex[:8]}")
        if hook == "disk":
            hooked.attach(made)
        time.sleep(1)
        return len(hooked.told(notes)) > before

    until(told)
