"""What a host can do is what its libvirt and QEMU say, not what a version or a Python binding suggests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.hypervisor.rig import Bench
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from volgate.errors import Unreachable
from volgate.hosts.local import LocalHost
from volgate.hypervisor import features
from volgate.hypervisor.features import read_capabilities, read_domain_capabilities, uring_allowed
from volgate.model import Bus, DiskOptions, Feature, IoMode

CAPTURED = Path(__file__).parent / "captured"
DOMAINS = (CAPTURED / "domain-capabilities.xml").read_text()
HOST = (CAPTURED / "capabilities.xml").read_text()
SAID = {
    Feature.IOTHREADS: "<iothreads",
    Feature.BLOCKDEV: "<backingStoreInput",
    Feature.LUKS: "<backingStoreInput",
    Feature.INCREMENTAL_BACKUP: "<backup",
}


@pytest.mark.parametrize("feature", Feature)
def test_every_feature_is_explained_to_callers_and_to_operators(feature: Feature):
    top = Path(__file__).parents[2]
    assert f'"{feature}"' in (top / "proto/volgate/v1/host.proto").read_text()
    assert f"| `{feature}` |" in (top / "docs/operator-guide.md").read_text()


@pytest.fixture
def own() -> Iterator[PrivateLibvirtd]:
    """A libvirtd of the test's own, without a guest."""
    with PrivateLibvirtd(security="off") as running:
        yield running


def test_domain_capabilities_name_the_emulator_and_what_it_has():
    found = read_domain_capabilities(DOMAINS)
    assert (found.kind, found.arch, found.machine, found.emulator) == ("kvm", "x86_64", "pc-i440fx-7.2", "/usr/bin/qemu-system-x86_64")
    assert found.features == set(SAID)


@pytest.mark.parametrize("feature", SAID)
@pytest.mark.parametrize("denied", ["says no", "says nothing"])
def test_what_domain_capabilities_deny_or_do_not_mention_is_not_there(feature: Feature, denied: str):
    element = f"{SAID[feature]} supported='yes'/>"
    assert DOMAINS.count(element) == 1
    without = DOMAINS.replace(element, element.replace("yes", "no") if denied == "says no" else "")
    assert read_domain_capabilities(without).features == {other for other in SAID if SAID[other] != SAID[feature]}


def test_snapshots_are_those_of_guests_of_the_same_architecture():
    assert read_capabilities(HOST, "x86_64") == {Feature.EXTERNAL_SNAPSHOTS}
    assert read_capabilities(HOST, "s390x") == set()
    assert read_capabilities(HOST.replace("<os_type>hvm", "<os_type>xen"), "x86_64") == set()
    assert read_capabilities(HOST.replace("<disksnapshot default='on'", "<disksnapshot default='off'"), "x86_64") == set()
    first, second = (at.start() for at in re.finditer("<disksnapshot", HOST))
    assert read_capabilities(HOST[:first] + HOST[first:].replace("<disksnapshot", "<other", 1), "x86_64"), "that is i686"
    assert not read_capabilities(HOST[:second] + HOST[second:].replace("<disksnapshot", "<other", 1), "x86_64")


@pytest.mark.parametrize(("says", "allowed"), [("0\n", True), ("1\n", False), ("2\n", False), (None, True)])
def test_the_kernel_may_forbid_io_uring(tmp_path: Path, says: str | None, *, allowed: bool):
    switch = tmp_path / "io_uring_disabled"
    if says is not None:
        switch.write_text(says)
    assert uring_allowed(switch) is allowed


def test_a_driver_that_is_not_qemu_has_none():
    host = LocalHost("t", "test:///default")
    info = host.info()
    assert info.connected and info.libvirt_version and info.features == () and not info.problem
    host.close()


FORBIDDEN = set() if uring_allowed() else {Feature.IO_URING}
TOO_OLD = {Feature.RBD_NAMESPACES} if libvirt.getVersion() < 11_006_000 else set()


def test_the_labs_qemu_has_them_all_and_they_work(bench: Bench, guest: Guest):
    info = bench.host.info()
    assert set(info.features) == set(Feature) - FORBIDDEN - TOO_OLD
    assert list(info.features) == sorted(info.features)
    for number, bus in enumerate((Bus.VIRTIO_BLK, Bus.VIRTIO_SCSI)):
        wanted = bench.plan(guest.uuid, bench.volume(f"v{number}"), bus=bus, io=IoMode.IO_URING)
        bench.attach(wanted)
        assert guest.wait_disk(wanted.options.serial)
        bench.detach(wanted)
    assert DiskOptions().bus is Bus.VIRTIO_BLK, "the feature of the default options is the one that doctor asks for"


FLAGS = {
    "aio.io_uring": Feature.IO_URING,
    "incremental-backup": Feature.INCREMENTAL_BACKUP,
    "iothread": Feature.IOTHREADS,
    "virtio-scsi-pci": Feature.VIRTIO_SCSI,
}


@pytest.mark.parametrize("flag", FLAGS)
def test_what_libvirt_did_not_find_in_qemu_is_not_there(own: PrivateLibvirtd, flag: str):
    """libvirtd keeps what it learned of a QEMU; one flag less there is a QEMU that was built without it."""
    host = LocalHost("own", own.uri)
    before = set(host.info().features)
    own.kill9()
    for kept in (own.base / "cache/qemu/capabilities").iterdir():
        said = kept.read_text()
        assert said.count(f"<flag name='{flag}'/>") == 1
        kept.write_text(said.replace(f"<flag name='{flag}'/>", ""))
    own.start()
    after = set(host.info().features)
    host.close()
    assert before - after == {FLAGS[flag]} - FORBIDDEN and after <= before


def test_they_are_asked_for_once_in_the_life_of_a_connection(own: PrivateLibvirtd, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def probe(connection: libvirt.virConnect) -> tuple[Feature, ...]:
        asked.append(1)
        return features.probe(connection)

    monkeypatch.setattr("volgate.hosts.local.probe", probe)
    host = LocalHost("own", own.uri)
    first = host.info()
    assert [host.info() for _ in range(5)] == [first] * 5 and asked == [1]
    own.restart()
    assert host.info() == first and asked == [1, 1]
    host.close()


def test_a_host_whose_features_are_not_told_is_connected_and_says_so(own: PrivateLibvirtd, monkeypatch: pytest.MonkeyPatch):
    def probe(_: libvirt.virConnect) -> tuple[Feature, ...]:
        raise Unreachable("features: no answer in time")

    monkeypatch.setattr("volgate.hosts.local.probe", probe)
    host = LocalHost("own", own.uri)
    info = host.info()
    assert info.connected and info.qemu_version and info.features == () and info.problem == "features: no answer in time"
    monkeypatch.undo()
    assert host.info().features and not host.info().problem
    host.close()
