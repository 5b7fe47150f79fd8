"""libvirt's errors in our words. libvirt says INTERNAL_ERROR for most of what QEMU refuses, so the text decides too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from volgate.errors import Denied, InDoubt, InUse, NotFound, OutOfSpace, Precondition, Unreachable, Unsupported, VolgateError

__all__ = ["translated"]

_LIBVIRT_LOST = (
    "client socket is closed",
    "End of file while reading",
    "Cannot recv data",
    "Cannot write data",
    "keepalive",
    "onnection closed",
)
_QEMU_LOST = ("monitor",)
_TABLE: dict[int, tuple[type[VolgateError], str]] = {
    libvirt.VIR_ERR_NO_DOMAIN: (NotFound, "DOMAIN_NOT_FOUND"),
    libvirt.VIR_ERR_DEVICE_MISSING: (NotFound, "DISK_NOT_FOUND"),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: (Unreachable, "DOMAIN_BUSY"),
    libvirt.VIR_ERR_RESOURCE_BUSY: (Unreachable, "DOMAIN_BUSY"),
    libvirt.VIR_ERR_OPERATION_INVALID: (Precondition, "DOMAIN_STATE"),
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: (Unsupported, "UNSUPPORTED"),
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: (Unsupported, "UNSUPPORTED"),
    libvirt.VIR_ERR_NO_SUPPORT: (Unsupported, "UNSUPPORTED"),
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: (Precondition, "NO_AGENT"),
    libvirt.VIR_ERR_AGENT_UNSYNCED: (Precondition, "NO_AGENT"),
    libvirt.VIR_ERR_NO_SECRET: (Unreachable, "SECRET_LOST"),
    libvirt.VIR_ERR_AUTH_FAILED: (Unreachable, "LIBVIRT_AUTH"),
}


@contextmanager
def translated(doing: str, *, mutation: bool = False) -> Iterator[None]:
    """Turn libvirt's errors into ours; a connection or a QEMU lost during a mutation leaves its outcome in doubt."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _translate(error, doing, mutation=mutation) from error


def _translate(error: libvirt.libvirtError, doing: str, *, mutation: bool) -> VolgateError:
    code, text = error.get_error_code(), str(error.get_error_message() or error)
    vague = code in (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_OPERATION_FAILED)
    lost: type[VolgateError] = InDoubt if mutation else Unreachable
    if vague and any(mark in text for mark in _QEMU_LOST):
        return lost(f"{doing}: the domain's QEMU went away ({text}); repeat the call", reason="QEMU_LOST")
    if code in (libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN) or (
        vague and any(mark in text for mark in _LIBVIRT_LOST)
    ):
        return lost(f"{doing}: libvirt went away ({text}); repeat the call", reason="LIBVIRT_LOST")
    if "No more available PCI slots" in text or "No free PCI" in text:
        return OutOfSpace(f"{doing}: {text}; use bus virtio-scsi, or add pcie-root-port controllers to the domain", reason="NO_FREE_SLOT")
    if 'Failed to get "write" lock' in text or 'Failed to get "consistent read" lock' in text or 'Failed to get shared "' in text:
        return InUse(f"{doing}: another process has the image open: {text}; close it there")
    if "error connecting: " in text:  # the words of QEMU's driver of RBD
        return Denied(f"{doing}: Ceph does not let QEMU in ({text}); look at the user's key and capabilities", reason="CEPH_DENIED")
    if "Unknown driver 'rbd'" in text:
        told = "install QEMU's driver of RBD (qemu-block-extra on Debian), restart libvirt and the domain"
        return Unsupported(f"{doing}: {text}; {told}", reason="RBD_UNSUPPORTED")
    if code == libvirt.VIR_ERR_NO_CONNECT or "Failed to connect socket" in text:
        return Unreachable(f"{doing}: {text}; is libvirtd running?", reason="LIBVIRT_LOST")
    found, reason = _TABLE.get(code, (Precondition, "LIBVIRT_REFUSED"))
    return found(f"{doing}: {text}", reason=reason, metadata={"libvirt_code": str(code)})
