"""Rounds that give hosts the keys which their attachments need, and have them remove those that nothing needs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from volgate.errors import Precondition, Unreachable, VolgateError
from volgate.model import DiskOptions
from volgate.operations.fleet import Station
from volgate.operations.keys import Keys
from volgate.operations.world import World
from volgate.store import attachments
from volgate.store.database import Database
from volgate.store.records import AttachmentRecord, AttachmentState

PASSPHRASE = "file:/srv/passphrases/a"


class KeepsSecrets:
    """A host that keeps secrets as libvirt does."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.disks: set[str] = set()
        self.problem: VolgateError | None = None
        self.prepared: list[list[str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def renew_passphrase(self, reference: str, *, timeout: float) -> None:
        self.meanwhile()
        self.secrets.add(reference)

    def sweep_secrets(self, prepared: Sequence[str], *, timeout: float) -> None:
        if self.problem:
            raise self.problem
        self.prepared.append(list(prepared))
        if not self.disks and not prepared:
            self.secrets.clear()


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

    def attach(self, state: AttachmentState = AttachmentState.ATTACHED) -> AttachmentRecord:
        name = str(uuid.uuid4())
        place = ("p", "v", str(uuid.uuid4()), "here", str(uuid.uuid4()), "guest")
        record = AttachmentRecord(
            name, *place, state, DiskOptions(passphrase=PASSPHRASE), f"ua-vg-{name[:8]}", "/dev/v", xml="<disk/>", created_at=time.time()
        )
        self.database.write(lambda commit: attachments.put(commit, record))
        if state is AttachmentState.ATTACHED:
            self.host.disks.add(record.alias)
        return record

    def detach(self, record: AttachmentRecord) -> None:
        self.host.disks.discard(record.alias)
        self.host.sweep_secrets([], timeout=5.0)
        self.database.write(lambda commit: attachments.forget(commit, record.id))

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


def test_a_key_that_came_behind_the_detach_goes_in_the_same_round(place: Place) -> None:
    record = place.attach()
    place.round(lambda: place.detach(record))
    assert not place.host.secrets


@pytest.mark.parametrize("problem", [Unreachable("no answer in time", reason="DOMAIN_BUSY"), Precondition("older", reason="HOST_PROTOCOL")])
def test_a_host_that_does_not_do_it_now_has_its_keys_and_does_it_later(place: Place, problem: VolgateError) -> None:
    place.host.problem = problem
    record = place.attach()
    place.round()
    assert place.host.secrets == {PASSPHRASE}
    place.host.problem = None
    place.detach(record)
    place.host.secrets.add(PASSPHRASE)
    place.round()
    assert not place.host.secrets


def test_a_host_is_told_what_is_prepared_there_and_keeps_its_key(place: Place) -> None:
    place.attach(AttachmentState.PREPARED)
    place.round()
    assert place.host.prepared == [["<disk/>"]] and place.host.secrets == {PASSPHRASE}


def test_a_host_without_attachments_is_asked_for_a_while_and_then_left_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.round()
    assert place.host.prepared == [[]]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600.0)
    place.round()
    assert place.host.prepared == [[]]
