"""A gateway with targets of the kernel and of tgtd, its own host and one that registers: disks end to end, and a host that is kept out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.server import Server
from tests.kernel.attached import DOMAIN, SCSI, WAYS, cut, held, left, map_of, mend, qemu_writes, ways
from tests.kernel.san import LIO, LOOPBACK, TGT_PORT, Daemon, Shelf, eventually
from tests.labs.site import HOST, MOUNTS
from volgate.cli.authority import Authority
from volgate.connection import IscsiPortal
from volgate.errors import VolgateError as Failure
from volgate.v1 import attachment_pb2, host_pb2, pool_pb2
from volgate_client import Client
from volgate_client.errors import InUse, Unavailable, VolgateError
from volgate_plugins.iscsi import initiator

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(1, turns=5), pytest.mark.timeout(900)]
MIB, PAGE = 1 << 20, 4096
SIZE = 16 * MIB
PATIENCE = 300.0  # an emulated machine imports slowly, two programs more so
THEIRS = "iqn.2026-01.org.volgate:h1"
KINDS = ("lio", "tgt")
QEMU = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI, transport=attachment_pb2.DISK_TRANSPORT_QEMU)
REDUNDANT, DEGRADED = attachment_pb2.REDUNDANCY_REDUNDANT, attachment_pb2.REDUNDANCY_DEGRADED
CONFIG = """
[server]
name = "c1"
listen = ["127.0.0.1:7443"]
[plugins]
blocked = ["ceph-rbd", "lvm", "memory"]
[tls]
certificate = "{pki}/controller-c1.crt"
key = "{pki}/controller-c1.key"
client_authority = "{pki}/authority.crt"
[limits]
check_seconds = 3
heartbeat_seconds = 1
host_dead_seconds = 20
[hosts.local]
uri = "qemu:///system"
"""
POOL = """
[pools.{kind}]
kind = "iscsi"
target = "{kind}"
iqn = "iqn.2026-01.org.volgate"
portals = ["{ways[0]}:{port}", "{ways[1]}:{port}"]
records = "/srv/records.{kind}"
[pools.{kind}.directory]
path = "/srv/pool.{kind}"
"""
PORTS = {"lio": 3260, "tgt": TGT_PORT}
SHELF = """
[pools.inv]
kind = "iscsi"
target = "inventory"
initiator = "{initiator}"
portals = ["{portal}"]
records = "/srv/records.inv"
"""
LUN = """
[[pools.inv.luns]]
wwid = "{wwid}"
size = {size}
target = "{target}"
lun = {lun}
"""
GATEWAY = "iqn.2026-01.org.volgate:gateway"


class Node:
    """A host that registers: `volgate serve` with a machine id and an initiator name of its own."""

    def __init__(self, base: Path, pki: Path) -> None:
        """It is started, and waited for by whoever needs it."""
        for folder in ("etc/iscsi", "work"):
            (base / folder).mkdir(parents=True)
        files = {"machine-id": "0" * 31 + "2", "iscsi/initiatorname.iscsi": f"InitiatorName={THEIRS}"}
        for file, text in files.items():
            (base / "etc" / file).write_text(f"{text}\n")
        (base / "etc/nvme").mkdir()
        for file in ("hostnqn", "hostid"):
            (base / "etc/nvme" / file).write_text("")  # it hides the machine's own
        shutil.copy("/proc/sys/kernel/random/boot_id", base / "boot_id")
        values = {"name": "h1", "address": "127.0.0.1", "port": 7444, "controllers": '["127.0.0.1:7443"]'}
        (base / "toml").write_text(HOST.format(**values, pki=pki, certificate="host-h1", uri="qemu:///system"))
        serve = [sys.executable, "-m", "volgate.cli", "serve", "--state-dir", f"{base}/state", "--config", f"{base}/toml"]
        self.log = base / "log"
        with self.log.open("wb") as log:
            own = f"mkdir -p /run/volgate; {MOUNTS.format(base=base)}".replace("exec ", "mount -t tmpfs tmpfs /run/volgate\nexec ")
            command = ["unshare", "-m", "sh", "-c", own, "sh", *serve]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill it without warning."""
        self.process.kill()
        self.process.wait(60)


class Site:
    """All of it."""

    def __init__(self, base: Path) -> None:
        """Start it, and wait until all is there."""
        self.daemon = Daemon(f"0.0.0.0:{TGT_PORT}")
        pki = base / "pki"
        Authority.create(pki, 30)
        authority = Authority.load(pki)
        for role, name in (("controller", "c1"), ("host", "h1")):
            authority.both(role, name, ["127.0.0.1"], 20)
        self.shelf = Shelf("shelf", [SIZE, 2 * SIZE], others=(THEIRS, GATEWAY))
        pools = [POOL.format(kind=kind, ways=WAYS, port=PORTS[kind]) for kind in KINDS]
        pools += [SHELF.format(initiator=GATEWAY, portal=LOOPBACK), *(LUN.format(**lun) for lun in self.shelf.luns())]
        self.server = Server(base / "state", config=CONFIG.format(pki=pki) + "".join(pools))
        node = base / "h1"
        node.mkdir()
        self.server.start(PATIENCE)
        with self.server.client(timeout=PATIENCE) as client:
            for kind in (*KINDS, "inv"):
                eventually(lambda: client.get_pool(f"pools/{kind}").health == pool_pb2.POOL_HEALTH_OK, PATIENCE)  # noqa: B023  # called at once
            self.node = Node(node, pki)
            eventually(lambda: self.host(client).live, PATIENCE)

    def host(self, client: Client) -> host_pb2.Host:
        """What is told of h1."""
        return next((host for host in client.list_hosts() if host.name == "hosts/h1"), host_pb2.Host())

    def close(self) -> None:
        """End it; what was said is shown with a test that fails."""
        print("\n".join(line for line in self.server.log.read_text().splitlines() if '"code": "OK"' not in line)[-30000:])
        print(self.node.log.read_text()[-5000:])
        self.server.stop()
        self.node.kill()
        self.daemon.end()

    def within(self, kind: str, uid: str) -> set[str]:
        """The initiators that a volume's target lets in or has a session of, asked of the target itself."""
        if kind == "lio":
            return {path.name for path in LIO.glob(f"iscsi/*{uid}/tpgt_1/acls/*")}
        found = [seen for name, seen in (self.daemon.targets() or {}).items() if name.endswith(uid)]
        return {name for seen in found for name in (*seen.names, *(one.initiator for one in seen.sessions))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ways()
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with site.server.client(timeout=PATIENCE) as client:
        yield client
    assert left() == [f"target {site.shelf.target}"] and site.daemon.targets() == {}


class Writer(threading.Thread):
    """h1's initiator, which writes page after page through libiscsi, whatever became of the host, until it may not."""

    def __init__(self, portals: list[IscsiPortal]) -> None:
        """`start()` begins, at LUN 1."""
        super().__init__(daemon=True)
        self.portals = portals
        self.done, self.problem = 0, ""

    def run(self) -> None:
        try:
            with initiator.reached(THEIRS, self.portals, 1, None, 20.0) as unit:
                while True:
                    self.done += 1
                    unit.write(0, self.done.to_bytes(8, "big").ljust(PAGE, b"\0"))
                    unit.sync()
        except Failure as error:
            self.problem = error.message

    def writes(self) -> None:
        """Start it, and see that it does."""
        self.start()
        eventually(lambda: self.done > 3 or self.problem)
        assert not self.problem

    def is_out(self) -> bool:
        """Whether it may write no more."""
        self.join(60)
        return not self.is_alive() and bool(self.problem)

    def comes_in(self) -> bool:
        """Whether another one like it does, once."""
        try:
            with initiator.reached(THEIRS, self.portals, 1, None, 20.0) as unit:
                unit.write(PAGE, b"again".ljust(PAGE, b"\0"))
                unit.sync()
        except Failure:
            return False
        return True


def writer_of(kind: str, uid: str) -> Writer:
    """One to a volume behind a target of its own."""
    return Writer([IscsiPortal(address, PORTS[kind], f"iqn.2026-01.org.volgate:{kind}.{uid}") for address in WAYS])


def once(failure: VolgateError) -> None:
    """Let a client not try again."""
    raise failure


def below(kind: str, name: str, length: int, offset: int = 0) -> bytes:
    """What is there, below the target."""
    (path,) = Path(f"/srv/pool.{kind}/volumes").glob(f"{name}.*/*.raw")
    return held(str(path), offset, length)


def test_a_volume_behind_tgtd_is_a_disk_by_two_portals_and_comes_back_with_it(site: Site, client: Client) -> None:
    volume = client.create_volume("pools/tgt", "a", size_bytes=SIZE, format="raw")
    attachment = client.attach_volume(volume.name, DOMAIN, host="hosts/local", options=SCSI)
    device = map_of(client, attachment.name)

    def comes_to(state: int) -> None:
        eventually(lambda: client.list_paths(attachment.name).redundancy == state, PATIENCE)

    def qemu_reaches(value: int, offset: int) -> None:
        qemu_writes(attachment.alias, value, offset, PAGE)
        assert held(device, offset, PAGE) == bytes([value]) * PAGE == below("tgt", "a", PAGE, offset)

    comes_to(REDUNDANT)
    assert site.within("tgt", volume.uid) == {"iqn.2026-01.org.volgate:host"}
    qemu_reaches(0xA1, 0)
    cut(2)
    comes_to(DEGRADED)
    qemu_reaches(0xA2, PAGE)
    mend(2)
    comes_to(REDUNDANT)
    assert client.expand_volume(volume.name, 2 * SIZE).size_bytes == 2 * SIZE
    qemu_reaches(0xA3, 2 * SIZE - PAGE)
    site.daemon.again()
    eventually(lambda: site.within("tgt", volume.uid), PATIENCE)
    comes_to(REDUNDANT)
    qemu_reaches(0xA4, 2 * PAGE)
    assert client.detach_volume(attachment.name, wait_seconds=60) is None
    client.delete_volume(volume.name)


def test_a_host_that_still_writes_is_fenced_at_its_targets_and_let_in_again(site: Site, client: Client) -> None:
    uids = {name: client.create_volume(f"pools/{name[-3:]}", name, size_bytes=SIZE, format="raw").uid for name in _names("moves", "stays")}
    for name in uids:
        _prepare(client, name)
    writers = {name: writer_of(name[-3:], uids[name]) for name in uids}
    for writer in writers.values():
        writer.writes()
    with Client(site.server.address, timeout=PATIENCE, retrying=once) as hasty:
        _refused(InUse, lambda: hasty.attach_volume(_full("moves-lio"), DOMAIN, host="hosts/local", options=SCSI))
        site.daemon.end()
        _refused(Unavailable, lambda: hasty.fence_host("hosts/h1"))
        _refused(InUse, lambda: hasty.attach_volume(_full("moves-tgt"), DOMAIN, host="hosts/local", options=SCSI))
        site.daemon.start()
    for _ in range(2):
        answer = client.fence_host("hosts/h1")
        assert list(answer.initiators) == [THEIRS] and not answer.addresses and not answer.unfenced_attachments
        assert list(answer.host.fenced_pools) == ["pools/inv", "pools/lio", "pools/tgt"]
    for name, writer in writers.items():
        assert writer.is_out() and THEIRS not in site.within(name[-3:], uids[name])
        assert not writer.comes_in() and below(name[-3:], name, 5, PAGE) == bytes(5)
    for name in _names("moves"):
        moved = client.attach_volume(_full(name), DOMAIN, host="hosts/local", options=SCSI)
        qemu_writes(moved.alias, 0xB1, 0, PAGE)
        assert below(name[-3:], name, PAGE) == bytes([0xB1]) * PAGE, "it is another host's now"
        assert client.detach_volume(moved.name, wait_seconds=60) is None
    eventually(lambda: not site.host(client).problem, PATIENCE)
    client.unfence_host("hosts/h1")
    assert not site.host(client).fenced_pools
    for name, writer in writers.items():
        assert writer.comes_in() == name.startswith("stays"), "what it still has is published to it again, and nothing else"
    again = {name: writer_of(name[-3:], uids[name]) for name in _names("stays")}
    for writer in again.values():
        writer.writes()
    answer = client.fence_host("hosts/h1")
    assert all(writer.is_out() for writer in again.values()), "one that tgtd has a session of, too"
    client.unfence_host("hosts/h1")
    for attachment in client.list_attachments(host="hosts/h1"):
        assert client.detach_volume(attachment.name, wait_seconds=60) is None
    assert list(client.fence_host("hosts/h1").initiators) == [THEIRS], "a host that has nothing there is fenced as well"
    client.unfence_host("hosts/h1")
    for name in uids:
        client.delete_volume(_full(name))


def test_a_host_that_still_writes_to_a_lun_of_a_san_is_fenced_by_its_reservation_and_let_in_again(site: Site, client: Client) -> None:
    client.create_volume("pools/inv", "lun-inv", size_bytes=SIZE, format="raw")
    _prepare(client, "lun-inv")
    file, portals = site.shelf.files[0], [IscsiPortal(LOOPBACK, 3260, site.shelf.target)]
    writer = Writer(portals)
    writer.writes()
    with Client(site.server.address, timeout=PATIENCE, retrying=once) as hasty:
        _refused(InUse, lambda: hasty.attach_volume(_full("lun-inv"), DOMAIN, host="hosts/local", options=SCSI))
    for _ in range(2):
        answer = client.fence_host("hosts/h1")
        assert not answer.unfenced_attachments and "pools/inv" in answer.host.fenced_pools
        assert writer.is_out() and not writer.comes_in()
    with pytest.raises(VolgateError) as told:
        client.attach_volume(_full("lun-inv"), DOMAIN, host="hosts/local", options=QEMU)
    assert told.value.reason == "RESERVED", "QEMU has no key, and its guest could not write"
    moved = client.attach_volume(_full("lun-inv"), DOMAIN, host="hosts/local", options=SCSI)
    qemu_writes(moved.alias, 0xC1, 0, PAGE)
    assert held(str(file), 0, PAGE) == bytes([0xC1]) * PAGE and not writer.comes_in(), "it is another host's now"
    assert client.detach_volume(moved.name, wait_seconds=60) is None
    eventually(lambda: not site.host(client).problem, PATIENCE)
    client.unfence_host("hosts/h1")
    assert writer.comes_in() and held(str(file), PAGE, 5) == b"again", "the SAN lets it in, as before"
    client.delete_volume(_full("lun-inv"))
    assert held(str(file), 0, 2 * PAGE) == bytes(2 * PAGE)


def test_a_dead_host_that_is_released_reaches_nothing_any_more(site: Site, client: Client) -> None:
    uids = {name: client.create_volume(f"pools/{name[-3:]}", name, size_bytes=SIZE, format="raw").uid for name in _names("dead")}
    for name in uids:
        _prepare(client, name)
    writers = {name: writer_of(name[-3:], uids[name]) for name in uids}
    for writer in writers.values():
        writer.writes()
    site.node.kill()
    eventually(lambda: not site.host(client).live, PATIENCE)
    client.release_host("hosts/h1", assume_off=True)
    for name, writer in writers.items():
        assert writer.is_out() and not writer.comes_in() and site.within(name[-3:], uids[name]) == set()
        client.delete_volume(_full(name))
    fenced = client.fence_host("hosts/h1").host.fenced_pools
    assert list(fenced) == ["pools/lio", "pools/tgt"], "nobody knows any more which LUNs of the SAN it has"
    client.unfence_host("hosts/h1", assume_restarted=True)


def _prepare(client: Client, name: str) -> None:
    """Have h1 reach and prove a volume for a domain there."""
    request = attachment_pb2.AttachVolumeRequest(volume=_full(name), host="hosts/h1", domain=DOMAIN, options=QEMU, prepare_only=True)
    client.call(client.attachments.AttachVolume, request)


def _names(*words: str) -> list[str]:
    return [f"{word}-{kind}" for word in words for kind in KINDS]


def _full(name: str) -> str:
    return f"pools/{name[-3:]}/volumes/{name}"


def _refused(kind: type[VolgateError], act: Callable[[], object]) -> None:
    with pytest.raises(kind):
        act()
