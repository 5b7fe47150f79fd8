"""Keys that a round gives to a host while the disk that needs them is detached: the next round takes them back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from volgate.errors import Unreachable
from volgate.hosts.interface import DetachOutcome, Presence
from volgate.model import DiskOptions
from volgate.operations.fleet import Station
from volgate.operations.keys import Keys
from volgate.operations.world import World
from volgate.store import attachments
from volgate.store.database import Database
from volgate.store.records import AttachmentRecord, AttachmentState

PASSPHRASE = "file:/srv/passphrases/a"


class KeepsSecrets:
    """A host that keeps secrets as libvirt does: a detach removes what no disk needs."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.disks: set[str] = set()
        self.reached = True
        self.meanwhile: Callable[[], None] = lambda: None

    def renew_passphrase(self, reference: str, *, timeout: float) -> None:
        self.meanwhile()
        self.secrets.add(reference)

    def presence(self, domain: str, alias: str, source: str, *, timeout: float) -> Presence:
        there = alias in self.disks
        return Presence(domain_exists=True, active=True, live=there, config=there, qemu=there)

    def detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        if not self.reached:
            raise Unreachable("no answer in time", reason="DOMAIN_BUSY")
        self.disks.discard(alias)
        if not self.disks:
            self.secrets.clear()
        return DetachOutcome.GONE


class Place:
    """Rounds over one host, each of which is due."""

    def __init__(self, folder: Path) -> None:
        self.host = KeepsSecrets()
        self.database = Database(folder / "volgate.db")
        station = Station("here", cast("Any", self.host))
        limits = SimpleNamespace(libvirt_timeout=5.0)
        world = SimpleNamespace(
            hosts=SimpleNamespace(stations=lambda: [station]), database=self.database, settings=SimpleNamespace(limits=limits)
        )
        self.keys = Keys(cast("World", world))

    def attach(self) -> AttachmentRecord:
        options = DiskOptions(passphrase=PASSPHRASE)
        name = str(uuid.uuid4())
        place = ("p", "v", str(uuid.uuid4()), "here", str(uuid.uuid4()), "guest")
        record = AttachmentRecord(name, *place, AttachmentState.ATTACHED, options, f"ua-vg-{name[:8]}", "/dev/v", created_at=time.time())
        self.database.write(lambda commit: attachments.put(commit, record))
        self.host.disks.add(record.alias)
        self.host.secrets.add(PASSPHRASE)
        return record

    def forget(self, record: AttachmentRecord) -> None:
        self.database.write(lambda commit: attachments.forget(commit, record.id))

    def detach(self, record: AttachmentRecord) -> None:
        self.host.detach(record.domain, record.alias, record.source, timeout=5.0)
        self.forget(record)

    def round(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """One round; `meanwhile` comes between its look at the records and the giving."""
        self.host.meanwhile = meanwhile
        self.keys.hurry()
        self.keys.renew()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.keys.close()
    made.database.close()


def test_a_key_that_came_behind_the_detach_is_taken_back(place: Place) -> None:
    record = place.attach()
    place.round(lambda: place.detach(record))
    assert place.host.secrets == {PASSPHRASE}
    place.round()
    assert not place.host.secrets


def test_a_host_that_did_not_answer_is_asked_again(place: Place) -> None:
    record = place.attach()
    place.round(lambda: place.detach(record))
    place.host.reached = False
    place.round()
    assert place.host.secrets == {PASSPHRASE}
    place.host.reached = True
    place.round()
    assert not place.host.secrets


def test_a_key_that_another_disk_needs_stays(place: Place) -> None:
    record, other = place.attach(), place.attach()
    place.round(lambda: place.forget(record))
    place.host.disks.discard(record.alias)
    place.round()
    assert place.host.secrets == {PASSPHRASE} and other.alias in place.host.disks


def test_a_disk_that_its_domain_still_has_is_left_with_its_key(place: Place) -> None:
    record = place.attach()
    place.round()
    place.forget(record)
    place.round()
    assert place.host.disks == {record.alias} and place.host.secrets == {PASSPHRASE}
    place.host.disks.clear()
    place.round()
    assert not place.host.secrets
