"""LUNs that QEMU opens itself. What would make it fail, or freeze its guest, is found before, by a login of our own."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection

from volgate.connect import iscsi_wire
from volgate.connection import Chap, LibiscsiLun, LibiscsiSource
from volgate.errors import Precondition, Unsupported
from volgate.model import Feature, PathState
from volgate.model import Path as IoPath
from volgate.secret import Secret

__all__ = ["connect", "paths"]

_PROBE_SECONDS = 10.0
_LISTEN_SECONDS = 3.0


def connect(
    lun: LibiscsiLun, initiator: str, resolve: Callable[[str], Secret], features: Collection[Feature], *, deadline: float
) -> LibiscsiSource:
    """What libvirt is to be given of a LUN, proven to be the one. `deadline` is in monotonic seconds.

    Raises Unsupported (LIBISCSI_UNSUPPORTED), Precondition (INITIATOR_MISSING, IDENTITY_MISMATCH, RESERVED), and what
    :func:`volgate.connect.iscsi_wire.look` does.
    """
    if Feature.LIBISCSI not in features:
        raise Unsupported(
            f"{lun.source}: QEMU on this host has no driver of iSCSI; install it (qemu-block-extra on Debian) and restart libvirt",
            reason="LIBISCSI_UNSUPPORTED",
        )
    if lun.chap and lun.chap.target_user:
        raise Unsupported(
            f"{lun.source}: QEMU cannot have the target prove itself (mutual CHAP); attach it by the host",
            reason="LIBISCSI_UNSUPPORTED",
        )
    if not initiator:
        raise Precondition(
            f"{lun.source}: this host has no initiator name; write one to /etc/iscsi/initiatorname.iscsi", reason="INITIATOR_MISSING"
        )
    until = min(deadline, time.monotonic() + _PROBE_SECONDS)
    found = iscsi_wire.look(lun.portal, lun.lun, initiator, _proof(lun.chap, resolve), deadline=until)
    if found.wwid != lun.wwid or found.size < lun.size:
        raise Precondition(
            f"LUN {lun.lun} of {lun.portal} is {found.wwid or 'nothing with a name'}, {found.size} bytes; recorded are {lun.wwid} and"
            f" {lun.size} bytes: nothing was done",
            reason="IDENTITY_MISMATCH",
        )
    if found.reserved:
        raise Precondition(
            f"{lun.source} is reserved for hosts that have a key there, and QEMU has none: it could not write; attach it by the host",
            reason="RESERVED",
        )
    return LibiscsiSource(lun.portal, lun.lun, initiator, lun.chap.user if lun.chap else "", lun.format)


def paths(lun: LibiscsiLun, host: str, *, deadline: float) -> list[IoPath]:
    """The one way, as this host reaches it, until `deadline` (monotonic seconds)."""
    try:
        seconds = max(0.05, min(deadline - time.monotonic(), _LISTEN_SECONDS))
        with socket.create_connection((lun.portal.address, lun.portal.port), seconds):
            state, problem = PathState.ACTIVE, ""
    except OSError as error:
        state, problem = PathState.FAILED, f"{lun.portal}: {'no answer in time' if isinstance(error, TimeoutError) else error}"
    return [
        IoPath("libiscsi", host, lun.portal.place, lun.source, state, last_error=problem, facts={"lun": str(lun.lun), "wwid": lun.wwid})
    ]


def _proof(chap: Chap | None, resolve: Callable[[str], Secret]) -> iscsi_wire.Proof | None:
    return iscsi_wire.Proof(chap.user, resolve(chap.secret)) if chap else None
