"""What is done to a disk under a running guest: grow it, hold its file systems still."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import libvirt
import libvirt_qemu
import structlog

from volgate.errors import OutOfRange, Precondition, Unreachable, VolgateError
from volgate.hypervisor import qmp
from volgate.hypervisor.devices import Device
from volgate.hypervisor.faults import translated

__all__ = ["freeze", "frozen", "refuse_job", "resize", "thaw"]

_log = structlog.get_logger()
_PING_SECONDS = 5
_FREEZE_SECONDS = 10.0  # a guest is thawed after this, whatever happens to us


def resize(domain: libvirt.virDomain, device: Device, size: int) -> int:
    """Grow to a volume of `size` bytes; equal is success, smaller is never done (libvirt would do it). Raises OutOfRange.

    LUKS keeps its header of it: the guest has the rest.
    """
    header = qmp.luks_header(domain, device.indexes[0]) if device.encrypted else 0
    layer = "LUKS of " if header else ""
    now = _size(domain, device.alias) + header
    if now > size:
        raise OutOfRange(f"{device.target} of {domain.name()} has {now} bytes; it is not made smaller")
    if now < size:
        refuse_job(domain, device, f"{layer}{device.target} has {now} of {size} bytes: ")
        with translated(f"grow {layer}{device.target} of {domain.name()}, which has {now} of {size} bytes", mutation=True):
            domain.blockResize(device.target, size - header, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    return _size(domain, device.alias) + header


def _size(domain: libvirt.virDomain, alias: str) -> int:
    for drive in qmp.drives(domain):
        if drive.device == alias:
            return drive.size
    raise Unreachable(f"QEMU of {domain.name()} does not show {alias}", reason="QEMU_LOST")


def refuse_job(domain: libvirt.virDomain, device: Device, so_far: str = "") -> None:
    """Libvirt would block for 30 seconds and then fail; say it at once, after `so_far`. Raises Precondition (DOMAIN_BUSY)."""
    with translated(f"look at the jobs of {domain.name()}"):
        if domain.blockJobInfo(device.target, 0) or domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            raise Precondition(
                f"{so_far}a block job or backup runs on {device.target} of {domain.name()}; wait for it or cancel it", reason="DOMAIN_BUSY"
            )


def freeze(domain: libvirt.virDomain) -> None:
    """Freeze the guest's file systems through its agent, until they are thawed. Raises Precondition (NO_AGENT)."""
    try:
        if not domain.isActive():
            raise Precondition(f"quiesce: {domain.name()} does not run, there is no guest to freeze", reason="NO_AGENT")
        libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-ping"}), _PING_SECONDS, 0)
        domain.fsFreeze()
    except libvirt.libvirtError as error:
        thaw(domain)  # an answer that came too late may have frozen it
        raise Precondition(f"quiesce: the guest agent of {domain.name()} does not freeze: {error}", reason="NO_AGENT") from error


@contextmanager
def frozen(domain: libvirt.virDomain, rescue: Callable[[], object]) -> Iterator[None]:
    """Freeze the guest's file systems through its agent. Raises Precondition (NO_AGENT).

    After ten seconds `rescue` is called in a thread of its own: it thaws by another connection, this one may hang.
    """
    freeze(domain)
    timer = threading.Timer(_FREEZE_SECONDS, rescue)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        thaw(domain)


def thaw(domain: libvirt.virDomain) -> None:
    """Thaw; what is asked of an agent that is away is only logged: the guest's own agent thaws when it comes back."""
    try:
        with translated(f"thaw {domain.name()}"):
            domain.fsThaw()
    except VolgateError as error:
        _log.warning("the guest may still be frozen", error=error.message)
