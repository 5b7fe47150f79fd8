"""Images of Ceph clusters: QEMU opens them itself. What would make it fail, or hang its guest, is found before."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Collection, Sequence
from typing import Any

from volgate.backend.run import Completed, run
from volgate.connection import RbdImage, RbdSource
from volgate.errors import Denied, NotFound, Unreachable, Unsupported
from volgate.model import Feature, PathState
from volgate.model import Path as IoPath
from volgate.secret import Secret

__all__ = ["Logins", "connect", "monitor_paths"]

_BANNER = b"ceph v"  # a monitor says its protocol before it is asked; one that is stopped accepts connections and says nothing
_MONITOR_SECONDS = 2.0
_LOGIN_SECONDS = 5
_TAKEN_SECONDS = 300.0  # a key that was taken is not tried again for so long
_CONFIG = """[global]
key = {key}
client_mount_timeout = {seconds}
rados_mon_op_timeout = {seconds}
rados_osd_op_timeout = {seconds}
log_to_stderr = true
err_to_stderr = true
"""
_REFUSED = ("handle_auth_bad_method", "Permission denied", "Operation not permitted")


def connect(image: RbdImage, features: Collection[Feature], *, deadline: float) -> RbdSource:
    """What libvirt is to be given of an image. Raises Unsupported (RBD_UNSUPPORTED), Unreachable (CEPH_UNREACHABLE).

    A QEMU that waits for monitors holds up its whole guest, so one of them must answer first. `deadline` is in monotonic seconds.
    """
    if Feature.RBD not in features:
        raise Unsupported(
            f"{image.path}: QEMU on this host has no driver of RBD; install it (qemu-block-extra on Debian) and restart libvirt",
            reason="RBD_UNSUPPORTED",
        )
    if image.namespace and Feature.RBD_NAMESPACES not in features:
        raise Unsupported(
            f"{image.path}: libvirt on this host cannot name an image in a namespace; run libvirt 11.6 or newer there, "
            "or make the pool without a namespace",
            reason="RBD_UNSUPPORTED",
        )
    problems = []
    for monitor in image.monitors:
        problem = _problem(monitor, min(deadline, time.monotonic() + _MONITOR_SECONDS))
        if not problem:
            return RbdSource(image.fsid, image.path, image.monitors, image.user, image.format)
        problems.append(f"{monitor}: {problem}")
    told = "; ".join(problems) or "none is named"
    raise Unreachable(f"{image.path}: no monitor of the cluster {image.fsid} answers this host ({told})", reason="CEPH_UNREACHABLE")


class Logins:
    """Tries a key, and the image with it, in a process of its own before QEMU is given both.

    A QEMU that Ceph does not let in waits for five minutes, and its guest with it. What was taken lately is not tried again.
    Any thread.
    """

    def __init__(self) -> None:
        """Nothing was tried yet."""
        self._taken: dict[tuple[str, str], tuple[bytes, float]] = {}

    def require(self, image: RbdImage, key: Secret, *, deadline: float) -> None:
        """Raises Denied (CEPH_DENIED), NotFound (the image), Unreachable (CEPH_UNREACHABLE), Unsupported (RBD_UNSUPPORTED).

        `key` is base64; `deadline` is in monotonic seconds.
        """
        user, digest, now = (image.fsid, image.user), hashlib.sha256(key.reveal().encode()).digest(), time.monotonic()
        known, until = self._taken.get(user, (b"", 0.0))
        if known == digest and now < until:
            return
        self._taken.pop(user, None)
        _refuse(image, _tried(image, key, max(1.0, min(2.0 * _LOGIN_SECONDS, deadline - now))))
        self._taken[user] = (digest, now + _TAKEN_SECONDS)


def _tried(image: RbdImage, key: Secret, seconds: float) -> Completed:
    """Let QEMU's own tool open the image. The key is in memory that the tool alone inherits."""
    servers = [{"host": host.strip("[]"), "port": port} for host, _, port in (monitor.rpartition(":") for monitor in image.monitors)]
    opened: dict[str, Any] = {"driver": "rbd", "pool": image.pool, "image": image.image, "user": image.user, "server": servers}
    opened |= {"conf": "/proc/self/fd/3"} | ({"namespace": image.namespace} if image.namespace else {})
    memory = os.memfd_create("volgate-rbd", os.MFD_CLOEXEC)
    try:
        os.write(memory, _CONFIG.format(key=key.reveal().strip(), seconds=_LOGIN_SECONDS).encode())
        name = "json:" + json.dumps({"driver": "raw", "file": opened})
        return run(["qemu-img", "info", "--output=json", name], timeout=seconds, fds=(memory,))
    finally:
        os.close(memory)


def _refuse(image: RbdImage, done: Completed) -> None:
    """Raise what the tool ran into."""
    if not done.returncode and not done.timed_out:
        return
    text = done.stderr.decode(errors="replace").strip()
    told = text.rpartition(": ")[2][-200:] if text else "no answer in time"
    if any(mark in text for mark in _REFUSED):
        raise Denied(
            f"{image.path}: Ceph does not let client.{image.user} in ({told}); compare its key and capabilities with what this host has",
            reason="CEPH_DENIED",
        )
    if "Unknown driver 'rbd'" in text:
        raise Unsupported(f"{image.path}: {told}; install QEMU's driver of RBD (qemu-block-extra on Debian)", reason="RBD_UNSUPPORTED")
    if "error reading header" in text or "error opening pool" in text:
        raise NotFound(f"{image.path}: the cluster {image.fsid} has no such image ({told})")
    raise Unreachable(f"{image.path}: the cluster {image.fsid} does not answer this host ({told})", reason="CEPH_UNREACHABLE")


def monitor_paths(image: RbdImage, host: str, *, deadline: float) -> Sequence[IoPath]:
    """Each monitor as this host reaches it, until `deadline` (monotonic seconds)."""
    found = []
    for monitor in image.monitors:
        problem = _problem(monitor, min(deadline, time.monotonic() + _MONITOR_SECONDS))
        state = PathState.FAILED if problem else PathState.ACTIVE
        found.append(IoPath("monitor", host, monitor, image.path, state, last_error=problem and f"{monitor}: {problem}"))
    return found


def _problem(monitor: str, deadline: float) -> str:
    """Why a monitor does not answer, "" for one that does."""
    host, _, port = monitor.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _left(deadline)) as link:
            greeting = b""
            while len(greeting) < len(_BANNER):
                link.settimeout(_left(deadline))
                part = link.recv(len(_BANNER) - len(greeting))
                if not part:
                    return "it hangs up"
                greeting += part
    except TimeoutError:
        return "no answer in time"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if greeting == _BANNER else "it is no monitor"


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())
