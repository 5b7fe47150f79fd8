"""A snapshot under a guest that everything goes wrong for: libvirtd dies, the gateway dies over the repair, the guest restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.attachments.test_life import read, write
from tests.attachments.world import MIB, until
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from volgate.errors import InDoubt
from volgate.hosts.local import LocalHost
from volgate.hypervisor import marks, overlay
from volgate.model import DiskOptions, Format
from volgate.names import SnapshotName, VolumeName
from volgate.operations import codec, requests, snapshots
from volgate.operations.fleet import Fleet
from volgate.operations.requests import Caller
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import Pools
from volgate.registry import Registry
from volgate.settings import load
from volgate.store import attachments, journal
from volgate.store.database import Database
from volgate.store.records import OperationState

NAME = VolumeName("p", "data")


class Gateway:
    """A controller in this process, whose steps a test can cut."""

    def __init__(self, folder: Path, pool: Path, uri: str) -> None:
        config = folder / "volgate.toml"
        config.write_text(f'[pools.p]\nkind = "directory"\npath = "{pool}"\n[hosts.local]\nuri = "{uri}"\n')
        settings = load(config, folder / "state")
        settings.state_dir.mkdir()
        self.registry = Registry()
        pools = Pools(self.registry, settings.pools, "an-instance", settings.limits.native_timeout)
        pools.check()
        self.host = LocalHost("local", uri)
        self.world = World(settings, self.registry, Database(settings.state_dir / "volgate.db"), pools, Fleet({"local": self.host}))
        self.world.attachments_known.add("p")
        self.runner = Runner(self.world)

    def do(self, request: requests.Request) -> object:
        return self.runner.submit(request, Caller()).future.result(60)

    def close(self) -> None:
        self.runner.stop(5)
        self.host.close()
        self.world.pools.close()
        self.world.database.close()
        self.registry.close()


@pytest.fixture
def gateway(tmp_path: Path, pool_dir: Path, libvirtd: PrivateLibvirtd) -> Iterator[Gateway]:
    made = Gateway(tmp_path, pool_dir, libvirtd.uri)
    yield made
    made.close()


def by_qemu_alone(guest: Guest, alias: str, top: str) -> None:
    """What libvirtd does up to the instant before it would write it down."""
    found = next(block for block in guest.qmp("query-block") if alias in block["qdev"])
    guest.qmp("blockdev-add", **{"driver": "file", "node-name": "libvirt-99-storage", "filename": top})
    guest.qmp("blockdev-add", **{"driver": "qcow2", "node-name": "libvirt-99-format", "file": "libvirt-99-storage", "backing": None})
    guest.qmp("blockdev-snapshot", node=found["inserted"]["node-name"], overlay="libvirt-99-format")


def test_a_snapshot_torn_by_the_guests_restart_is_cut_anew(gateway: Gateway, fresh_guest: Guest) -> None:
    gateway.do(requests.CreateVolume(pool="p", volume="data", size=8 * MIB, format=Format.QCOW2))
    attached = gateway.do(requests.AttachVolume(NAME, "local", fresh_guest.name, DiskOptions(serial="data"))).attachment
    write(fresh_guest, "first")
    tops = []

    def libvirtd_dies(_domain: libvirt.virDomain, xml: str, _flags: int) -> None:
        tops.append(ET.fromstring(xml).find("disks/disk/source").get("file"))
        by_qemu_alone(fresh_guest, attached.alias, tops[-1])
        raise InDoubt("libvirtd died")

    def we_die(_domain: libvirt.virDomain, _alias: str) -> None:
        if tops:
            raise InDoubt("the gateway died")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libvirt.virDomain, "snapshotCreateXML", libvirtd_dies)
        patch.setattr(overlay, "_follow", we_die)
        patch.setattr(marks, "let_go", lambda _domain: None)
        ticket = gateway.runner.submit(requests.CreateSnapshot(SnapshotName("p", "data", "s")), Caller())
        with pytest.raises(InDoubt):
            ticket.future.result(60)
        assert len(tops) == 1 and fresh_guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
        fresh_guest.destroy()
        fresh_guest.start(boot=True)
        write(fresh_guest, "second")

    def record() -> journal.OperationRecord:
        with gateway.world.database.read() as connection:
            return journal.find(connection, ticket.operation)

    until(lambda: record().state is OperationState.DONE, 60)
    write(fresh_guest, "third!")
    assert read(fresh_guest, 6) == "third!"
    assert codec.decode_request("CreateSnapshot", record().request).name.snapshot == "s"
    pool = gateway.world.pools.get("p")
    volume = pool.backend().get_volume("data")
    (cut,) = pool.backend().list_snapshots(snapshots.lookups.identity(volume))
    with gateway.world.database.read() as connection:
        (held,) = attachments.of_volume(connection, "p", "data")
    assert held.source == pool.backend().connection(snapshots.lookups.identity(volume), host="local").path not in tops
    gateway.do(requests.DetachVolume(attached.id))
    clone = gateway.do(requests.CreateVolume(pool="p", volume="clone", size=0, source=f"{NAME}/snapshots/{cut.name}"))
    assert clone.volume.size == 8 * MIB
    other = gateway.do(requests.AttachVolume(VolumeName("p", "clone"), "local", fresh_guest.name, DiskOptions(serial="clone"))).attachment
    assert read(fresh_guest, 6, "clone") == "second"
    gateway.do(requests.DetachVolume(other.id))
    assert "urn:volgate" not in fresh_guest.domain.XMLDesc() + fresh_guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
