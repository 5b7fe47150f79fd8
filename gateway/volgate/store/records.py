"""Rows as frozen values. Times are UTC seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgspec

from volgate.model import DiskOptions, Qos, Snapshot, Volume

__all__ = [
    "AttachmentRecord",
    "AttachmentState",
    "HostRecord",
    "IndexedSnapshot",
    "IndexedVolume",
    "OperationRecord",
    "OperationState",
    "StepRecord",
    "VolumeRow",
]

_volumes = msgspec.json.Decoder(Volume)


class OperationState(StrEnum):
    """Where an operation is in its life; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    IN_DOUBT = "in-doubt"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A part of an operation: its name and `running`, `done`, `failed` or `undone`."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """A mutation in the journal.

    `request` and `result` are JSON of the typed request and answer; `facts` is JSON of what was drawn in its first commit
    (uid, nonce) and noted since. `body_hash` identifies the request without its request_id. `owner` is the controller that works
    on it ("" where there is but one), `claim` grows with each that took it over. The result of one that failed tells its error.
    """

    id: str
    method: str
    target: str
    request_id: str
    body_hash: str
    principal: str
    state: OperationState
    request: bytes
    facts: bytes
    created_at: float
    trace: str = ""
    result: bytes = b""
    error_reason: str = ""
    error_message: str = ""
    finished_at: float = 0.0
    uid: str = ""
    steps: tuple[StepRecord, ...] = ()
    progress: float = 0.0
    owner: str = ""
    claim: int = 0


class AttachmentState(StrEnum):
    """Where an attachment is in its life."""

    ATTACHED = "attached"
    PREPARED = "prepared"
    DETACHING = "detaching"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class AttachmentRecord:
    """An attachment and all that its undo needs."""

    id: str
    pool: str
    volume: str
    volume_uid: str
    host: str
    domain: str
    domain_name: str
    state: AttachmentState
    options: DiskOptions
    alias: str
    source: str
    target: str = ""
    address: str = ""
    live: bool = False
    config: bool = False
    xml: str = ""
    boot_id: str = ""
    created_at: float = 0.0
    problem: str = ""
    limits: Qos | None = None

    @property
    def qos(self) -> Qos:
        """The limits now: those of a later UpdateVolume, else those asked for with the attachment."""
        return self.options.qos if self.limits is None else self.limits


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host that is a process of its own, as it last said; of a host of this process only whether it is cordoned.

    `session` is drawn by the host for a registration, "" after its release. `released`: its attachments were let go; `returning`: it
    registered after that, and its domains are to be rid of what is attached elsewhere. `new`: it registered for the first time, and
    its domains were not looked at yet. `note` tells what was taken from them.
    """

    name: str
    address: str = ""
    session: str = ""
    machine_id: str = ""
    boot_id: str = ""
    iqn: str = ""
    nqn: str = ""
    nvme_host_id: str = ""
    version: str = ""
    uri: str = ""
    connected: bool = False
    problem: str = ""
    libvirt_version: str = ""
    qemu_version: str = ""
    features: tuple[str, ...] = ()
    last_heartbeat: float = 0.0
    cordoned: bool = False
    released: bool = False
    returning: bool = False
    new: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class IndexedVolume:
    """A volume as last seen. `attachments` are ids."""

    pool: str
    volume: Volume
    observed_at: float
    attachments: tuple[str, ...] = field(default=())


class VolumeRow(NamedTuple):
    """A volume's row as it lies in the index: equal rows are equal values, so that what was made of one can be kept."""

    pool: str
    name: str
    record: bytes
    observed_at: float
    attachments: tuple[str, ...] = ()

    @property
    def volume(self) -> Volume:
        """The volume, decoded at each look."""
        return _volumes.decode(self.record)


@dataclass(frozen=True, slots=True)
class IndexedSnapshot:
    """A snapshot as last seen."""

    pool: str
    snapshot: Snapshot
    observed_at: float
