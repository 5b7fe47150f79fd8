"""What the controller asks of a host: frozen values in and out, blocking calls, each bounded by `timeout` seconds.

Every call is idempotent. Errors are those of :mod:`volgate.errors`: NotFound (domain), Unreachable (libvirt down, nothing
changed), InDoubt (libvirt died during the call), InUse, Precondition, OutOfSpace (no free slot).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from volgate.connection import Connection
from volgate.model import DiskOptions, Feature, Leftover, Path, Qos

__all__ = [
    "AttachPlan",
    "AttachedDisk",
    "DetachOutcome",
    "Domain",
    "EventKind",
    "Finding",
    "FoundDisk",
    "Halt",
    "Host",
    "HostEvent",
    "HostInfo",
    "Identity",
    "Presence",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """What no two hosts may share; "" is what a host does not have. `boot_id` changes with every boot."""

    machine_id: str = ""
    boot_id: str = ""
    iqn: str = ""
    nqn: str = ""
    nvme_host_id: str = ""

    @property
    def reservation_key(self) -> int:
        """Its key at disks that are reserved (SPC-4): 64 bits of what no two hosts share; 0 for a host that has no such thing."""
        if not (own := self.machine_id or self.iqn):
            return 0
        return int.from_bytes(hashlib.sha256(f"volgate reservation {own}".encode()).digest()[:8], "big") or 1


@dataclass(frozen=True, slots=True)
class HostInfo:
    """Facts about a host, probed.

    `problem` says why libvirt is not connected, or, where it is, why its features are not known. `live`: it can be asked;
    `last_heartbeat` is in UTC seconds, 0 for a host of this process. `fenced`: the pools that its clients are kept out of.
    """

    name: str
    identity: Identity
    uri: str
    connected: bool
    libvirt_version: str = ""
    qemu_version: str = ""
    features: tuple[Feature, ...] = ()
    problem: str = ""
    version: str = ""
    address: str = ""
    live: bool = True
    last_heartbeat: float = 0.0
    cordoned: bool = False
    released: bool = False
    fenced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """A libvirt domain. `boot` changes whenever the domain is started anew (libvirt's id of the running domain; "" when off)."""

    uuid: str
    name: str
    active: bool
    persistent: bool
    boot: str = ""


@dataclass(frozen=True, slots=True)
class AttachPlan:
    """One attach attempt: `alias` (`ua-vg-...`) was drawn in the journal's first commit and is used by this attempt alone.

    `beside` are `<disk>`s prepared for the same domain that it may not have yet: their targets and addresses are taken.
    """

    attachment: str
    alias: str
    domain: str
    connection: Connection
    options: DiskOptions
    volume: str = ""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """What was attached, from libvirt's own answer: enough to detach without looking at what devices are like then.

    `target` is libvirt's name (vdb, sda), `address` the guest's bus address, `source` the path or name libvirt has,
    `live` and `config` say where it is, `xml` is the disk element as libvirt has it.
    """

    domain: str
    domain_name: str
    alias: str
    target: str
    address: str
    source: str
    live: bool
    config: bool
    xml: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class FoundDisk:
    """A disk whose alias is ours, as a domain has it now, and the options that its XML says."""

    disk: AttachedDisk
    options: DiskOptions


class DetachOutcome(StrEnum):
    """How a detach stands."""

    GONE = "gone"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Presence:
    """Where a disk with a given alias or source is found now. `qemu` counts QEMU's own nodes and devices."""

    domain_exists: bool
    active: bool
    live: bool
    config: bool
    qemu: bool
    source: str = ""
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """An inconsistency of a domain's disks: an orphan in QEMU, a foreign holder. `repaired` says what was done."""

    domain: str
    alias: str
    source: str
    problem: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class Halt:
    """A domain (uuid, name) that QEMU stopped because of an I/O error; `disks` are the aliases of those that failed."""

    domain: str
    name: str
    disks: tuple[str, ...]


class EventKind(StrEnum):
    """What a host tells unasked."""

    DEVICE_REMOVED = "device-removed"
    DOMAIN_STARTED = "domain-started"
    DOMAIN_STOPPED = "domain-stopped"
    DOMAIN_HALTED = "domain-halted"
    RECONNECTED = "reconnected"
    IO_ERROR = "io-error"


@dataclass(frozen=True, slots=True)
class HostEvent:
    """One event; `domain` is a uuid, `alias` a device's alias, either may be empty."""

    kind: EventKind
    domain: str = ""
    alias: str = ""
    detail: dict[str, str] = field(default_factory=dict)


class Host(Protocol):
    """One hypervisor host."""

    def info(self) -> HostInfo:
        """Describe the host; never raises for a libvirt that is down (`connected` is False then)."""
        ...

    def find_domain(self, reference: str, *, timeout: float) -> Domain:
        """Find a domain by name or uuid."""
        ...

    def list_domains(self, *, timeout: float) -> Sequence[Domain]:
        """List every domain, running or not."""
        ...

    def prepare(self, plan: AttachPlan, *, timeout: float) -> str:
        """Connect the volume to this host, prove it, and return its `<disk>` without attaching it."""
        ...

    def attach(self, plan: AttachPlan, *, timeout: float) -> AttachedDisk:
        """Connect, prove, attach (live, and config where persistent), verify in XML and in QEMU. Idempotent by alias."""
        ...

    def detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        """Detach by alias, its source checked (a mismatch is InUse with reason IDENTITY_MISMATCH); wait for the guest up to `timeout`.

        A libvirt that hangs is waited for at least 5 seconds.
        GONE only when neither the live XML, nor the config, nor QEMU has it any more; a missing disk or domain is GONE.
        """
        ...

    def release(self, source: str, *, timeout: float) -> None:
        """Leave nothing on the host of a volume that was connected there under that name: no map, no device, no session of ours.

        Success if there is nothing, and for what needs no connecting. Its disk is gone from every domain before, and QEMU has closed it.
        InUse: somebody else on the host has it open.
        """
        ...

    def grow(self, source: str, size: int, *, timeout: float) -> None:
        """Have the host's devices of a volume, each path and the map, learn its size in bytes; success if they have it, or there are none.

        Unreachable: the message says which layer is short, and why.
        """
        ...

    def held(self, *, timeout: float) -> Sequence[str]:
        """List what the host has connected and not let go of, as libvirt names it."""
        ...

    def leftovers(self, accounted: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Leftover]:
        """List what the host has of ours that nothing accounts for: LUNs, maps, disks, sessions, records of open-iscsi.

        `accounted` is what the attachments of the host, and the operations on it, have there, as libvirt names it. With `apply` what was
        so in a look half a minute before, too, is taken away; what is in use stays, and so does what others made.
        """
        ...

    def presence(self, domain: str, alias: str, source: str, *, timeout: float) -> Presence:
        """Look where the disk is, deciding nothing."""
        ...

    def resize(self, domain: str, alias: str, size: int, *, timeout: float) -> int:
        """Grow the attached disk to a volume of `size` bytes, never shrink; return the size that QEMU has then.

        What LUKS keeps for its header is of `size`, and counts as QEMU's.
        """
        ...

    def limit(self, domain: str, alias: str, qos: Qos, *, timeout: float) -> None:
        """Set the disk's limits where it is, live and in the configuration; 0 lifts one. Raises Precondition if it is nowhere."""
        ...

    def switch_overlay(self, domain: str, alias: str, top: Connection, base: str, *, quiesce: bool, timeout: float) -> bool:
        """Make QEMU write to `top` instead of `base`; success if it does already. Return whether the guest was quiesced.

        Unreachable with reason OVERLAY_TORN: the domain is on `top` for good, but `base` is no snapshot.
        """
        ...

    def freeze(self, domain: str, *, timeout: float) -> None:
        """Freeze the file systems of a guest through its agent; after ten seconds they thaw by themselves.

        Raises Precondition (NO_AGENT), and InDoubt: it may be frozen, for no longer than that.
        """
        ...

    def thaw(self, domain: str, *, timeout: float) -> bool:
        """Thaw them; say whether they were frozen until now. A guest that was not frozen is left as it is."""
        ...

    def our_disks(self, *, timeout: float) -> Sequence[FoundDisk]:
        """List every disk with an alias of ours (`ua-vg-...`) of every domain, running or not."""
        ...

    def paths(self, domain: str, alias: str, *, timeout: float) -> Sequence[Path]:
        """Return the libvirt/QEMU part of the way: bus address, alias, error count."""
        ...

    def file_paths(self, connection: Connection, *, timeout: float) -> Sequence[Path]:
        """Return the host's part of the way to a volume: file, file system, device, mount, space; or the monitors that it reaches."""
        ...

    def renew_key(self, connection: Connection, *, timeout: float) -> None:
        """Let libvirt have the key of now, by which a domain opens the volume at its next start; nothing for what has no key.

        Raises InvalidRequest (the reference, or what it names, is no key), Unreachable.
        """
        ...

    def renew_passphrase(self, reference: str, *, timeout: float) -> None:
        """Let libvirt have the passphrase of now, by which a domain opens LUKS at its next start. Raises InvalidRequest, Unreachable."""
        ...

    def sweep_secrets(self, prepared: Sequence[str], *, timeout: float) -> None:
        """Remove what libvirt keeps of ours and neither a domain nor one of these disks needs, which `prepare` rendered as XML.

        What an attach or a prepare of the last 10 minutes needs stays as well. Raises InvalidRequest, Unreachable.
        """
        ...

    def repair(self, domain: str, sources: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Finding]:
        """Compare QEMU with libvirt's XML; report, and with `apply` remove, orphans.

        Only devices whose alias begins with `ua-vg-`, and deviceless nodes that open one of `sources`, are ever touched.
        """
        ...

    def halted(self, *, timeout: float) -> Sequence[Halt]:
        """List the domains that QEMU stopped because of an I/O error."""
        ...

    def resume(self, domain: str, *, timeout: float) -> bool:
        """Let such a domain run again, and QEMU repeat what failed; False if it is not stopped by an I/O error."""
        ...

    def subscribe(self, listener: Callable[[HostEvent], None]) -> None:
        """Call `listener` (quickly, from a thread of ours) for each event from now on."""
        ...

    def close(self) -> None:
        """Let go of libvirt and of threads."""
        ...
