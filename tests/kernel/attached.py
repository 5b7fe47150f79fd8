"""A gateway in the kernel lab, on a pool of iSCSI LUNs by two portals, and the domain `guest`. For tests that run in the guest."""

from __future__ import annotations

import time
from pathlib import Path

import libvirt
import libvirt_qemu

from tests.edge.server import Server
from tests.kernel.san import LIO, eventually, sh
from volgate.connect import iscsi_sessions
from volgate.connect.held import Held
from volgate.connect.multipath import Multipathd
from volgate.v1 import attachment_pb2, pool_pb2
from volgate_client import Client

__all__ = ["DOMAIN", "SCSI", "WAYS", "Gateway", "cut", "held", "left", "mend", "qemu_writes", "ways"]

WAYS = ("10.20.1.1", "10.20.2.1")
DOMAIN = "guest"
SCSI = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI)
START_SECONDS = 300.0  # an emulated machine imports slowly
CONFIG = """
[plugins]
blocked = ["ceph-rbd", "lvm", "memory"]
[hosts.local]
uri = "qemu:///system"
[pools.san]
kind = "iscsi"
iqn = "iqn.2026-01.org.volgate"
portals = ["{0}", "{1}"]
records = "/srv/records"
[pools.san.directory]
path = "/srv/pool"
"""
QUEUE = "sed -i 's/no_path_retry .*/no_path_retry queue/' /etc/multipath.conf; multipathd reconfigure"


def ways() -> None:
    """Two addresses of this machine, each on a device of its own; what no way has for is waited for."""
    commands = [f"ip link add way{number} type dummy; ip link set way{number} up" for number in (1, 2)]
    sh("\n".join([*commands, QUEUE]))
    for number in (1, 2):
        mend(number)


def cut(number: int) -> None:
    """Let nothing through one way."""
    sh(f"ip addr del {WAYS[number - 1]}/32 dev way{number}")


def mend(number: int) -> None:
    """Let it through again."""
    sh(f"ip addr replace {WAYS[number - 1]}/32 dev way{number}")


class Gateway:
    """`volgate serve` on that pool. `volume()` names are `pools/san/volumes/NAME`."""

    def __init__(self) -> None:
        """Nothing runs before `start()`."""
        for folder in ("/srv/pool", "/srv/gateway"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.server = Server(Path("/srv/gateway/state"), config=CONFIG.format(*WAYS))

    def start(self) -> Gateway:
        """Serve, with the pool up."""
        self.server.start(START_SECONDS)
        try:
            with self.server.client() as client:
                eventually(lambda: client.get_pool("pools/san").health == pool_pb2.POOL_HEALTH_OK, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it; what it said is shown with a test that fails."""
        lines = self.server.log.read_text().splitlines()
        print("\n".join(line for line in lines if '"code": "OK"' not in line or '"exception"' in line)[-60000:])
        self.server.stop()

    def volume(self, name: str, size: int) -> str:
        """Make one; return its name."""
        with self.server.client() as client:
            return client.create_volume("pools/san", name, size_bytes=size, format="raw").name


def left() -> list[str]:
    """Sessions, SCSI devices, maps, records, marks, targets: all that an attach makes, and the disks of the domain."""
    found = [f"session {session.portal}" for session in iscsi_sessions.Sessions().all()]
    found += [f"device {path.name}" for path in Path("/sys/bus/scsi/devices").glob("[0-9]*:*")]
    found += [f"map {one.wwid}" for one in Multipathd().maps(time.monotonic() + 60)]
    found += [f"record {path}" for path in iscsi_sessions.RECORDS.rglob("*") if path.is_file()]
    found += [f"mark {path}" for path in iscsi_sessions.OURS.glob("*")]
    found += [f"held {source}" for source in Held().sources()]
    found += [f"target {path.name}" for path in LIO.glob("iscsi/iqn*")]
    return found + [f"disk of {DOMAIN}: {line}" for line in sh(f"virsh -q domblklist {DOMAIN}").splitlines() if line.strip()]


def qemu_writes(alias: str, value: int, offset: int, length: int) -> None:
    """Let QEMU itself write to the disk that it has; what came of it is on the disk."""
    connection = libvirt.open("qemu:///system")
    try:
        command = f'qemu-io -d {alias} "write -P {value} {offset} {length}"'
        libvirt_qemu.qemuMonitorCommand(connection.lookupByName(DOMAIN), command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    finally:
        connection.close()


def held(device: str, offset: int, length: int) -> bytes:
    """What a device has there."""
    with Path(device).open("rb") as disk:
        disk.seek(offset)
        return disk.read(length)


def map_of(client: Client, name: str) -> str:
    """The device of the map that an attachment is."""
    return next(path.device for path in client.list_paths(name).paths if path.transport == "multipath")
