"""Volumes that QEMU opens by a passphrase, as disks of a domain: iSCSI LUNs by two portals, and logical volumes. Grown layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from tests.edge.server import Server
from tests.kernel.attached import CONFIG, DOMAIN, WAYS, Gateway, cut, held, left, mend, qemu_writes, ways
from tests.kernel.groups import Group
from tests.kernel.san import eventually, sh
from volgate.v1 import attachment_pb2
from volgate_client import Client
from volgate_client.errors import Denied, InvalidRequest, Precondition, Unavailable, VolgateError

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(600)]
MIB = 1 << 20
SIZE = 32 * MIB
PAGE = 65536
HEADER = 4 * MIB
"""More than LUKS takes."""
SECRETS = Path("/srv/passphrases")
ENCRYPTION = """
[encryption]
allowed_references = ["file:/srv/passphrases/"]
[pools.logical]
kind = "lvm"
vg = "{vg}"
thin_pool = "pool"
devices = ["{device}"]
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    ways()
    SECRETS.mkdir(parents=True)
    (SECRETS / "right").write_text("correct horse battery staple\n")
    (SECRETS / "wrong").write_text("incorrect horse\n")
    group = Group()
    gateway = Gateway()
    text = CONFIG.format(*WAYS).replace('"lvm", ', "") + ENCRYPTION.format(vg=group.name, device=group.device)
    gateway.server = Server(gateway.server.state, config=text)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    """A client; what a test leaves is its failure."""
    with gateway.server.client(timeout=120.0) as client:
        yield client
    assert left() == []
    eventually(lambda: "volgate" not in sh("virsh -q secret-list"), 120)  # a round of keys may have met the detach


def by(name: str) -> attachment_pb2.DiskOptions:
    return attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI, passphrase=f"file:{SECRETS}/{name}")


def qemu(command: str, **arguments: object) -> Any:
    """Run a command of QEMU's monitor."""
    connection = libvirt.open("qemu:///system")
    try:
        text = json.dumps({"execute": command, "arguments": arguments})
        told = json.loads(libvirt_qemu.qemuMonitorCommand(connection.lookupByName(DOMAIN), text, 0))
    finally:
        connection.close()
    assert "return" in told, told
    return told["return"]


def drive(alias: str) -> dict[str, Any]:
    (found,) = [one for one in qemu("query-block") if alias in (one.get("qdev") or "")]
    return dict(found["inserted"])


def guest_size(alias: str) -> int:
    """What the guest is told of its disk, bytes."""
    return int(drive(alias)["image"]["virtual-size"])


def node_of(alias: str) -> str:
    return str(drive(alias)["node-name"])


def source() -> str:
    """The device of the only disk of the domain."""
    (line,) = sh(f"virsh -q domblklist {DOMAIN}").splitlines()
    return line.split()[1]


def reads(device: str, value: int, offset: int) -> bool:
    """Whether somebody else who has the passphrase reads that there."""
    image = f"driver=luks,key-secret=key,file.driver=host_device,file.filename={device}"
    secret = f"secret,id=key,file={SECRETS}/right"
    told = sh(f"""head -c -1 {SECRETS}/right >/srv/key; qemu-io --object {secret.replace(f"{SECRETS}/right", "/srv/key")} --image-opts {image} \
        -r -U -c 'read -P {value} {offset} {PAGE}'; rm /srv/key""")
    return "verification failed" not in told


@pytest.mark.parametrize("pool", ["san", "logical"])
def test_a_volume_is_encrypted_by_qemu_and_grows_under_its_guest(gateway: Gateway, client: Client, pool: str) -> None:
    volume = client.create_volume(f"pools/{pool}", "a", size_bytes=SIZE, format="raw").name
    attachment = client.attach_volume(volume, DOMAIN, options=by("right"))
    assert client.attach_volume(volume, DOMAIN, options=by("right")) == attachment
    assert attachment.options.passphrase == f"file:{SECRETS}/right"
    assert held(source(), 0, 6) == b"LUKS\xba\xbe"
    header = SIZE - guest_size(attachment.alias)
    assert 0 < header < HEADER
    qemu_writes(attachment.alias, 171, MIB, PAGE)
    assert held(source(), header + MIB, PAGE) != bytes([171]) * PAGE and reads(source(), 171, MIB)

    assert client.expand_volume(volume, 2 * SIZE).size_bytes == 2 * SIZE
    assert guest_size(attachment.alias) == 2 * SIZE - header
    qemu_writes(attachment.alias, 172, 2 * SIZE - header - PAGE, PAGE)
    assert reads(source(), 172, 2 * SIZE - header - PAGE)
    assert client.detach_volume(attachment.name, wait_seconds=60) is None

    again = client.attach_volume(volume, DOMAIN, options=by("right"))
    assert guest_size(again.alias) == 2 * SIZE - header and reads(source(), 171, MIB)
    assert client.detach_volume(again.name, wait_seconds=60) is None
    client.delete_volume(volume)


def test_an_expansion_names_the_layer_that_is_short_and_goes_on_there(gateway: Gateway, client: Client) -> None:
    volume = gateway.volume("b", SIZE)
    attachment = client.attach_volume(volume, DOMAIN, options=by("right"))
    header = SIZE - guest_size(attachment.alias)
    with Client(gateway.server.address, timeout=120.0, retrying=once) as hasty:
        cut(2)
        eventually(lambda: client.list_paths(attachment.name).redundancy == attachment_pb2.REDUNDANCY_DEGRADED, 120)
        with pytest.raises(Unavailable, match="path: "):
            hasty.expand_volume(volume, 2 * SIZE)
        assert guest_size(attachment.alias) == SIZE - header
        mend(2)
        eventually(lambda: client.list_paths(attachment.name).redundancy == attachment_pb2.REDUNDANCY_REDUNDANT, 120)
        (target,) = [line.split()[0] for line in sh(f"virsh -q domblklist {DOMAIN}").splitlines()]
        sink = {"driver": "null-co", "node-name": "sink", "size": SIZE - header, "read-zeroes": True}
        qemu("blockdev-add", **sink)
        qemu("blockdev-mirror", **{"job-id": "others", "device": node_of(attachment.alias), "target": "sink", "sync": "full", "speed": 1})
        with pytest.raises(VolgateError, match=f"grow LUKS of {target} of {DOMAIN}, which has {SIZE} of {2 * SIZE} bytes: .*in use"):
            hasty.expand_volume(volume, 2 * SIZE)
        assert Path("/sys/class/block", Path(source()).resolve().name, "size").read_text().strip() == str(2 * SIZE // 512)
        qemu("block-job-cancel", device="others", force=True)
        eventually(lambda: not qemu("query-block-jobs"))
        qemu("blockdev-del", **{"node-name": "sink"})
    assert client.expand_volume(volume, 2 * SIZE).size_bytes == 2 * SIZE
    assert guest_size(attachment.alias) == 2 * SIZE - header
    assert client.detach_volume(attachment.name, wait_seconds=60) is None
    client.delete_volume(volume)


def test_a_guest_starts_with_its_encrypted_disk_after_libvirtd_began_anew(gateway: Gateway, client: Client) -> None:
    volume = gateway.volume("e", SIZE)
    attachment = client.attach_volume(volume, DOMAIN, options=by("right"))
    qemu_writes(attachment.alias, 173, MIB, PAGE)
    sh("pkill -KILL -x libvirtd; while pgrep -x libvirtd; do sleep 0.1; done; rm -f /run/libvirtd.pid; libvirtd -d")
    eventually(lambda: f"luks:file:{SECRETS}/right" in sh("virsh -q secret-list"), 120)
    sh(f"virsh -q destroy {DOMAIN}; virsh -q start {DOMAIN} --paused", timeout=120)
    assert guest_size(attachment.alias) < SIZE and reads(source(), 173, MIB)
    assert client.detach_volume(attachment.name, wait_seconds=60) is None
    client.delete_volume(volume)


def test_what_cannot_be_opened_by_a_passphrase_is_refused_and_stays_as_it_is(gateway: Gateway, client: Client) -> None:
    volume = gateway.volume("c", SIZE)
    plain = client.attach_volume(volume, DOMAIN, options=attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI))
    qemu_writes(plain.alias, 7, 0, PAGE)
    assert client.detach_volume(plain.name, wait_seconds=60) is None
    with Client(gateway.server.address, timeout=120.0, retrying=once) as hasty:
        with pytest.raises(Precondition) as refused:
            hasty.attach_volume(volume, DOMAIN, options=by("right"))
        assert refused.value.reason == "NOT_ENCRYPTED"
        with pytest.raises(Denied, match="allowed references"):
            hasty.attach_volume(volume, DOMAIN, options=attachment_pb2.DiskOptions(passphrase="file:/etc/shadow"))
        shared = by("right")
        shared.access = attachment_pb2.ACCESS_MODE_SHARED
        with pytest.raises(InvalidRequest, match="one QEMU at a time"):
            hasty.attach_volume(volume, DOMAIN, options=shared)
        shared = by("right")
        shared.transport = attachment_pb2.DISK_TRANSPORT_QEMU
        with pytest.raises(InvalidRequest, match="no block device"):
            hasty.attach_volume(volume, DOMAIN, options=shared)
        with pytest.raises(InvalidRequest, match="missing"):
            hasty.attach_volume(volume, DOMAIN, options=by("missing"))
        assert left() == []
        other = gateway.volume("d", SIZE)
        made = client.attach_volume(other, DOMAIN, options=by("right"))
        assert client.detach_volume(made.name, wait_seconds=60) is None
        with pytest.raises(Precondition, match="password"):
            hasty.attach_volume(other, DOMAIN, options=by("wrong"))
    assert left() == []
    plain = client.attach_volume(volume, DOMAIN, options=attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI))
    assert held(source(), 0, PAGE) == bytes([7]) * PAGE
    assert client.detach_volume(plain.name, wait_seconds=60) is None
    for name in (volume, other):
        client.delete_volume(name)


def once(failure: VolgateError) -> None:
    """Let a client not try again."""
    raise failure
