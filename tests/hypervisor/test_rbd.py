"""RBD images attached through librbd, on a real cluster: found, proven, grown, taken back; their key is in libvirt's memory alone."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.hypervisor.rbd_rig import MIB, Images
from tests.hypervisor.rig import BUSES, SECONDS, Bench, plan
from tests.labs.ceph import CephCluster
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.soaking import count, draw
from volgate.connection import RbdImage
from volgate.errors import Denied, InUse, InvalidRequest, NotFound, Unreachable, Unsupported, VolgateError
from volgate.hosts.interface import AttachPlan, DetachOutcome
from volgate.hosts.local import LocalHost
from volgate.hypervisor.devices import in_qemu, layout
from volgate.hypervisor.features import drives
from volgate.hypervisor.secrets import usage_of
from volgate.model import Access, Bus, CacheMode, Feature, IoMode, PathState


@pytest.fixture
def images(ceph: CephCluster) -> Iterator[Images]:
    made = Images(ceph)
    yield made
    made.clean()


@pytest.fixture
def host(libvirtd: PrivateLibvirtd) -> Iterator[LocalHost]:
    made = LocalHost("local", libvirtd.uri)
    yield made
    made.close()


def detach(host: LocalHost, wanted: AttachPlan) -> None:
    assert host.detach(wanted.domain, wanted.alias, wanted.connection.source, timeout=SECONDS) is DetachOutcome.GONE


def secrets(guest: Guest) -> list[str]:
    return [secret.usageID() for secret in guest.connection.listAllSecrets()]


def usage(image: RbdImage) -> str:
    return usage_of(image.fsid, image.user)


@pytest.mark.parametrize("bus", BUSES)
def test_an_image_is_attached_written_grown_and_taken_back(host: LocalHost, guest: Guest, images: Images, bus: Bus) -> None:
    image = images.make()
    wanted = plan(guest.uuid, image, bus=bus)
    done = host.attach(wanted, timeout=SECONDS)
    assert done.live and done.config and done.source == image.source
    assert host.attach(wanted, timeout=SECONDS) == done, "a repeat finds it"
    named = [one.attrib for one in ET.fromstring(done.xml).iterfind("source/host")]
    assert [one["name"] for one in named] == ["127.0.0.1", "localhost"] and len({one["port"] for one in named}) == 1
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and disk.size == image.size
    guest.run(f"yes there | dd of={disk.device} bs=4096 count=1 iflag=fullblock conv=fsync 2>/dev/null")
    assert images.read(image, 6) == b"there\n" and len(images.watchers(image)) == 1
    with images.opened(image, read_only=False) as opened:
        opened.resize(image.size + 32 * MIB)
    assert host.resize(guest.uuid, wanted.alias, image.size + 32 * MIB, timeout=SECONDS) == image.size + 32 * MIB
    Bench.eventually(lambda: guest.wait_disk(wanted.options.serial).size == image.size + 32 * MIB)
    seen = host.presence(guest.uuid, wanted.alias, image.source, timeout=SECONDS)
    assert seen.live and seen.config and seen.qemu and seen.source == image.source
    (found,) = host.our_disks(timeout=SECONDS)
    assert found.disk.source == image.source and found.options == wanted.options
    assert host.repair(guest.uuid, [image.source], apply=True, timeout=SECONDS) == []
    detach(host, wanted)
    assert guest.disks() == [] and images.watchers(image) == []
    assert not host.presence(guest.uuid, wanted.alias, image.source, timeout=SECONDS).qemu
    assert secrets(guest) == [], "with the last disk goes the secret"


def test_the_wrong_image_is_neither_attached_twice_nor_detached(host: LocalHost, guest: Guest, images: Images) -> None:
    image, other = images.make(), images.make()
    wanted = plan(guest.uuid, image)
    host.attach(wanted, timeout=SECONDS)
    with pytest.raises(InUse, match="already as vda"):
        host.attach(plan(guest.uuid, image), timeout=SECONDS)
    for source in (other.source, image.source.replace(image.fsid, "0" * 36)):
        with pytest.raises(InUse) as refused:
            host.detach(guest.uuid, wanted.alias, source, timeout=SECONDS)
        assert refused.value.reason == "IDENTITY_MISMATCH"
    with pytest.raises(InUse) as refused:
        host.attach(plan(guest.uuid, other, alias=wanted.alias), timeout=SECONDS)
    assert refused.value.reason == "IDENTITY_MISMATCH"
    detach(host, wanted)


def test_the_cache_is_librbds_own_and_off_by_default(host: LocalHost, guest: Guest, images: Images) -> None:
    plain, cached = images.make(), images.make()
    plans = [plan(guest.uuid, plain), plan(guest.uuid, cached, cache=CacheMode.WRITEBACK, io=IoMode.THREADS, access=Access.READ_ONLY)]
    for wanted in plans:
        host.attach(wanted, timeout=SECONDS)
    direct = {
        in_qemu(one.connection.source): node["cache"]["direct"]
        for one in plans
        for node in guest.qmp("query-named-block-nodes")
        if node["drv"] == "rbd" and one.connection.image in node["file"]
    }
    assert direct == {f"librbd:{plain.path}": True, f"librbd:{cached.path}": False}
    assert [found.options for found in host.our_disks(timeout=SECONDS)] == [one.options for one in plans]
    for wanted in plans:
        detach(host, wanted)


def test_the_secret_stays_until_the_last_domain_has_let_go(
    host: LocalHost, libvirtd: PrivateLibvirtd, guest: Guest, fresh_guest: Guest, images: Images
) -> None:
    plans = [plan(guest.uuid, images.make()), plan(fresh_guest.uuid, images.make())]
    for wanted in plans:
        host.attach(wanted, timeout=SECONDS)
    (secret,) = guest.connection.listAllSecrets()
    assert "ephemeral='yes' private='yes'" in secret.XMLDesc()
    with pytest.raises(libvirt.libvirtError, match="private"):
        secret.value()
    detach(host, plans[0])
    assert secrets(guest) == [usage(plans[0].connection)], "the other domain needs it"
    fresh_guest.destroy()
    other = LocalHost("local", libvirtd.uri)  # as after a restart: nothing is remembered
    detach(other, plans[1])
    other.close()
    assert secrets(guest) == []


def test_the_secret_of_a_prepared_disk_stays_for_as_long_as_it_is_expected(
    host: LocalHost, libvirtd: PrivateLibvirtd, guest: Guest, images: Images
) -> None:
    wanted = plan(guest.uuid, images.make())
    xml, name = host.prepare(wanted, timeout=SECONDS), usage(wanted.connection)
    host.sweep_secrets([], timeout=SECONDS)
    assert secrets(guest) == [name], "its record may be on its way"
    other = LocalHost("local", libvirtd.uri)  # as after a restart: nothing is remembered
    other.sweep_secrets([xml], timeout=SECONDS)
    assert secrets(guest) == [name]
    with pytest.raises(InvalidRequest, match="xml"):
        other.sweep_secrets(["<disk>"], timeout=SECONDS)
    assert secrets(guest) == [name]
    other.sweep_secrets([], timeout=SECONDS)
    other.close()
    assert secrets(guest) == []


def test_a_libvirtd_that_forgot_the_secret_gets_it_again(
    host: LocalHost, libvirtd: PrivateLibvirtd, fresh_guest: Guest, images: Images
) -> None:
    guest, image = fresh_guest, images.make()
    wanted = plan(guest.uuid, image)
    host.attach(wanted, timeout=SECONDS)
    libvirtd.kill9()
    libvirtd.start()
    assert secrets(guest) == [] and guest.wait_disk(wanted.options.serial), "the guest goes on without"
    guest.destroy()
    with pytest.raises(libvirt.libvirtError) as refused:
        guest.domain.create()
    assert refused.value.get_error_code() == libvirt.VIR_ERR_NO_SECRET
    host.renew_key(image, timeout=SECONDS)
    guest.start(boot=True)
    assert guest.wait_disk(wanted.options.serial)
    detach(host, wanted)


def test_guests_go_on_while_the_key_is_rotated(host: LocalHost, fresh_guest: Guest, images: Images) -> None:
    guest, image, later = fresh_guest, images.make(), images.make()
    wanted, another = plan(guest.uuid, image), plan(guest.uuid, later)
    host.attach(wanted, timeout=SECONDS)
    disk = guest.wait_disk(wanted.options.serial)
    images.rotate()
    guest.run(f"yes after | dd of={disk.device} bs=4096 count=1 iflag=fullblock conv=fsync 2>/dev/null")
    host.attach(another, timeout=SECONDS)
    assert guest.wait_disk(another.options.serial), "what is attached later has the new key"
    images.rotate()
    host.renew_key(image, timeout=SECONDS)
    guest.destroy()
    guest.start(boot=True)
    disk = guest.wait_disk(wanted.options.serial)
    assert disk and guest.run(f"head -c 5 {disk.device}") == "after"
    for one in (wanted, another):
        detach(host, one)


def test_the_key_is_nowhere_but_in_memory(host: LocalHost, libvirtd: PrivateLibvirtd, guest: Guest, images: Images) -> None:
    image = images.make()
    wanted = plan(guest.uuid, image)
    done = host.attach(wanted, timeout=SECONDS)
    process = Path(f"/proc/{guest.qemu_pid()}")
    said = [done.xml, guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), str(guest.qmp("query-block")), str(done), repr(wanted)]
    said += [(process / name).read_text(errors="replace") for name in ("cmdline", "environ")]
    said += [path.read_text(errors="replace") for path in libvirtd.base.rglob("*") if path.is_file() and path.stat().st_size < 16 * MIB]
    assert images.key() in images.ceph.key_file.read_text() and not [text for text in said if images.key() in text]
    detach(host, wanted)


def answer(server: socket.socket, text: bytes) -> None:
    """Greet one client as no monitor does."""
    client, _ = server.accept()
    with client:
        client.sendall(text)


def test_what_cannot_work_is_told_before_qemu_is_asked(host: LocalHost, guest: Guest, images: Images, tmp_path: Path) -> None:
    image = images.make()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as rude:
        threading.Thread(target=answer, args=(rude, b"HTTP/1.0"), daemon=True).start()
        monitors = [f"127.0.0.1:{server.getsockname()[1]}" for server in (silent, rude)]
        with pytest.raises(Unreachable) as away:
            host.attach(plan(guest.uuid, replace(image, monitors=(*monitors, "127.0.0.1:1"))), timeout=SECONDS)
    told = away.value.message
    assert away.value.reason == "CEPH_UNREACHABLE" and image.fsid in told
    assert "no answer in time" in told and "it is no monitor" in told and "refused" in told
    for key, text in ((tmp_path / "absent", "No such file"), (tmp_path / "odd", "not base64")):
        if "base64" in text:
            key.write_text("this is no key")
        with pytest.raises(InvalidRequest, match=text) as refused:
            host.attach(plan(guest.uuid, replace(image, key=f"file:{key}")), timeout=SECONDS)
        assert "this is no key" not in refused.value.message
    with pytest.raises(Unsupported, match=r"libvirt 11\.6") as unnamed:
        host.attach(plan(guest.uuid, replace(image, namespace="tenant")), timeout=SECONDS)
    assert unnamed.value.reason == "RBD_UNSUPPORTED"
    assert guest.disks() == [] and guest.live_disks() == []


def test_a_key_that_ceph_does_not_take_is_told_as_such(host: LocalHost, guest: Guest, images: Images, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(images.ceph.admin_key_file.read_text())
    image = images.make(key=f"file:{tmp_path}/key")
    with pytest.raises(Denied) as refused:
        host.attach(plan(guest.uuid, image), timeout=SECONDS)
    assert refused.value.reason == "CEPH_DENIED" and (tmp_path / "key").read_text() not in refused.value.message
    with pytest.raises(NotFound, match="no such image"):
        host.attach(plan(guest.uuid, replace(image, image="absent", key=f"file:{images.ceph.key_file}")), timeout=SECONDS)
    assert guest.live_disks() == [] and guest.run("echo lives") == "lives", "QEMU was not asked: it would wait for five minutes"
    good = plan(guest.uuid, replace(image, key=f"file:{images.ceph.key_file}"))
    host.attach(good, timeout=SECONDS)
    detach(host, good)


def test_what_an_interrupted_attach_left_in_qemu_is_found_by_its_image(host: LocalHost, guest: Guest, images: Images) -> None:
    image, other = images.make(), images.make()
    server = dict(zip(("host", "port"), image.monitors[0].split(":"), strict=True))
    conf = images.ceph.base / "left.conf"
    conf.write_text(f"[global]\nmon host = {image.monitors[0]}\nkey = {images.key()}\n")
    for number, one in ((71, image), (72, other)):
        name = f"libvirt-{number}-storage"
        node = {"driver": "rbd", "pool": one.pool, "image": one.image, "user": one.user, "server": [server], "conf": str(conf)}
        guest.qmp("blockdev-add", **{"node-name": name, "read-only": False, **node})
    wanted = plan(guest.uuid, image)
    assert host.presence(guest.uuid, wanted.alias, image.source, timeout=SECONDS).qemu
    (found,) = host.repair(guest.uuid, [image.source], apply=False, timeout=SECONDS)
    assert found.alias == "libvirt-71-storage" and not found.repaired
    host.attach(wanted, timeout=SECONDS)
    names = [node["node-name"] for node in guest.qmp("query-named-block-nodes")]
    assert "libvirt-71-storage" not in names and "libvirt-72-storage" in names, "another image's node is not touched"
    (found,) = host.repair(guest.uuid, [other.source], apply=True, timeout=SECONDS)
    assert found.repaired
    detach(host, wanted)


@pytest.mark.timeout(count(120, soak=1200))
def test_a_libvirtd_killed_in_the_middle_of_an_attach_leaves_one_disk_after_the_repeat(
    libvirtd: PrivateLibvirtd, fresh_guest: Guest, images: Images
) -> None:
    random = draw()
    for number in range(count(3, soak=24)):
        given = threading.Event()
        host = LocalHost("local", libvirtd.uri, disk_hook=lambda xml, _plan, given=given: (given.set(), xml)[1])
        wanted = plan(fresh_guest.uuid, images.make(), bus=BUSES[number % 2])
        with ThreadPoolExecutor(1) as pool:
            attaching = pool.submit(host.attach, wanted, timeout=SECONDS)
            assert given.wait(SECONDS)
            Bench.pause(random.uniform(0.001, 0.06))
            libvirtd.kill9()
            libvirtd.start()
            error = attaching.exception(60)
        assert error is None or (isinstance(error, VolgateError) and error.retryable), error
        host.attach(wanted, timeout=SECONDS)
        assert fresh_guest.wait_disk(wanted.options.serial) and len(images.watchers(wanted.connection)) == 1
        listed = {index for device in layout(fresh_guest.domain.XMLDesc()).disks for index in device.indexes}
        names = [node["node-name"] for node in fresh_guest.qmp("query-named-block-nodes") if node["node-name"].startswith("libvirt-")]
        assert {name.split("-")[1] for name in names} <= listed, "no orphan"
        detach(host, wanted)
        assert images.watchers(wanted.connection) == [] and fresh_guest.disks() == []
        host.close()


def test_the_host_tells_which_monitors_it_reaches(host: LocalHost, images: Images) -> None:
    image = images.make()
    image = replace(image, monitors=(image.monitors[0], "127.0.0.1:1"))
    good, bad = host.file_paths(image, timeout=SECONDS)
    assert (good.transport, good.initiator, good.target, good.state) == ("monitor", "local", image.monitors[0], PathState.ACTIVE)
    assert bad.state is PathState.FAILED and "127.0.0.1:1: Connection refused" in bad.last_error


def test_a_monitor_that_hangs_holds_up_no_guest(host: LocalHost, guest: Guest, images: Images) -> None:
    image = images.make()
    with hanging(images.ceph, "mon.a"):
        with pytest.raises(Unreachable) as away:
            host.attach(plan(guest.uuid, image), timeout=SECONDS)
        assert away.value.reason == "CEPH_UNREACHABLE" and guest.run("echo lives") == "lives"
    wanted = plan(guest.uuid, image)
    host.attach(wanted, timeout=SECONDS)
    detach(host, wanted)


@contextlib.contextmanager
def hanging(ceph: CephCluster, name: str) -> Iterator[None]:
    ceph.freeze(name)
    try:
        yield
    finally:
        ceph.thaw(name)


def test_libvirts_defaults_let_qemu_open_images(default_libvirtd: PrivateLibvirtd, default_guest: Guest, images: Images) -> None:
    host = LocalHost("local", default_libvirtd.uri)
    wanted = plan(default_guest.uuid, images.make())
    host.attach(wanted, timeout=SECONDS)
    assert default_guest.wait_disk(wanted.options.serial)
    detach(host, wanted)
    host.close()


def test_a_qemu_without_the_driver_of_rbd_is_told(host: LocalHost, libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    assert Feature.RBD in host.info().features and libvirtd.uri
    built_in = tmp_path / "qemu"
    built_in.write_bytes(b"\x7fELF...librbd.so.1...")
    assert drives(Feature.RBD, str(built_in), tmp_path) and not drives(Feature.RBD, str(tmp_path / "absent"), tmp_path)
    built_in.write_bytes(b"\x7fELF")
    assert not drives(Feature.RBD, str(built_in), tmp_path)
    module = tmp_path / "usr/lib/x86_64-linux-gnu/qemu/block-rbd.so"
    module.parent.mkdir(parents=True)
    module.touch()
    assert drives(Feature.RBD, str(built_in), tmp_path)
