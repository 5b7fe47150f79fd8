"""AttachVolume and DetachVolume beside bare libvirt with the same XML and flags on the same guest."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import libvirt

from tests.bench.bench import GIB, Bench
from tests.bench.measure import Pairs, Row
from tests.bench.mutations import POOL, Ours
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from volgate.v1 import attachment_pb2
from volgate_client import Client

LIVE, CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
COMMITS = 3


class BareLibvirt:
    """The reference: libvirt-python, its event of the removed device, and a database for the three commits of an attach."""

    def __init__(self, libvirtd: PrivateLibvirtd, guest: Guest, folder: Path) -> None:
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_events, daemon=True).start()
        self._connection = libvirtd.connect()
        self._domain = self._connection.lookupByUUIDString(guest.uuid)
        self._removed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._connection.domainEventRegisterAny(
            self._domain, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, lambda _c, _d, alias, _o: self._removed.put(alias), None
        )
        self._database = sqlite3.connect(folder / "commits.db", isolation_level=None)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE record (body BLOB)"):
            self._database.execute(statement)

    def attach(self, xml: str) -> None:
        self._domain.attachDeviceFlags(xml, LIVE | CONFIG)
        for _ in range(COMMITS):
            self._database.execute("INSERT INTO record VALUES (?)", (xml.encode(),))

    def detach(self, xml: str, alias: str) -> None:
        self._domain.detachDeviceFlags(xml, CONFIG)
        self._domain.detachDeviceAlias(alias, LIVE)
        while self._removed.get(timeout=30) != alias:
            pass

    def close(self) -> None:
        self._database.close()
        self._connection.close()


class Attachments:
    """The calls, by short names."""

    def __init__(self, client: Client, domain: str) -> None:
        self._client = client
        self._domain = domain

    def attach(self, volume: str, *, prepare: bool = False) -> attachment_pb2.AttachVolumeResponse:
        request = attachment_pb2.AttachVolumeRequest(volume=f"{POOL}/volumes/{volume}", domain=self._domain, prepare_only=prepare)
        return self._client.call(self._client.attachments.AttachVolume, request)

    def detach(self, name: str) -> None:
        answer = self._client.call(self._client.attachments.DetachVolume, attachment_pb2.DetachVolumeRequest(name=name))
        if answer.HasField("attachment"):
            raise TimeoutError(f"the guest has not released {name}")

    def plan(self, volume: str) -> tuple[str, attachment_pb2.Attachment]:
        """Return the XML that the gateway would send for a volume, and what it says of it."""
        answer = self.attach(volume, prepare=True)
        self.detach(answer.attachment.name)
        return answer.disk_xml, answer.attachment


def attachments(bench: Bench) -> list[Row]:
    """Rows of AttachVolume and DetachVolume; in between the guest must have seen the disk."""
    attach, detach = Pairs(), Pairs()
    with PrivateLibvirtd(security="off") as libvirtd:
        guest = Guest(libvirtd)
        bare = BareLibvirt(libvirtd, guest, bench.place("attach"))
        with bench.serving("attach-state", f'[hosts.lab]\nuri = "{libvirtd.uri}"\n') as server, server.client() as client:
            calls, volumes = Attachments(client, guest.name), Ours(client)
            for name in ("ours", "reference"):
                volumes.create(name, "qcow2", GIB)
            xml, planned = calls.plan("reference")
            for _ in bench.rounds(25, seconds=45):
                with attach.our_turn():
                    found = calls.attach("ours").attachment
                guest.wait_disk(found.options.serial)
                with detach.our_turn():
                    calls.detach(found.name)
                with attach.their_turn():
                    bare.attach(xml)
                guest.wait_disk(planned.options.serial)
                with detach.their_turn():
                    bare.detach(xml, planned.alias)
        bare.close()
        guest.remove()
    return attach.rows("attach") + detach.rows("detach")


def _events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"attach": attachments}
