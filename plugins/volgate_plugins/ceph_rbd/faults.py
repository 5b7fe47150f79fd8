"""One table from the numbers of librados and librbd to our errors; some say something else than they seem to."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import rados
import rbd

from volgate.errors import (
    AlreadyExists,
    Denied,
    InDoubt,
    InUse,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Precondition,
    Unreachable,
    Unsupported,
    VolgateError,
)

__all__ = ["changing", "number", "reading", "told"]

_SURE: dict[int, tuple[type[VolgateError], str, str]] = {
    errno.ENOENT: (NotFound, "NOT_FOUND", ""),
    errno.EEXIST: (AlreadyExists, "EXISTS_DIFFERENT", ""),
    errno.EPERM: (Denied, "CEPH_DENIED", "the key lacks a capability: it needs `profile rbd` for the pool on mon, osd and mgr"),
    errno.EACCES: (Denied, "CEPH_DENIED", "the cluster refuses the user or its key; compare them with `ceph auth get`"),
    errno.EBUSY: (InUse, "IN_USE", ""),
    errno.ENOTEMPTY: (InUse, "IN_USE", "the image still has snapshots"),
    errno.EINVAL: (Precondition, "CEPH_REFUSED", ""),
    errno.EOPNOTSUPP: (Unsupported, "UNSUPPORTED", ""),
    errno.ENOSYS: (Unsupported, "UNSUPPORTED", ""),
    errno.ENOSPC: (OutOfSpace, "OUT_OF_SPACE", "the cluster is full; add OSDs or delete volumes"),
    errno.EDQUOT: (OutOfSpace, "QUOTA_EXCEEDED", "the pool's quota is used up; raise it or delete volumes"),
    errno.EFBIG: (OutOfRange, "OUT_OF_RANGE", ""),
    errno.EDOM: (OutOfRange, "OUT_OF_RANGE", ""),
}
_SILENT = {
    errno.ETIMEDOUT: "no answer in time: an OSD or the monitors hang, or are down",
    errno.ESHUTDOWN: "the cluster has blocklisted this client, or the connection was shut down",
    errno.EROFS: "the lock of the image was lost in the middle: an OSD did not answer in time, or another client took it",
    errno.EIO: "an input/output error",
}
"""After these nobody knows what was done. EROFS is what librbd says when a request that holds the lock times out."""


def number(error: BaseException) -> int:
    """The error number of an exception of either library, 0 if it has none."""
    return abs(int(getattr(error, "errno", 0) or 0))


def told(error: BaseException, doing: str, *, changing: bool) -> VolgateError:
    """Say in our words what an exception means; `changing`: the call may have had an effect."""
    code = number(error)
    if code in _SURE:
        kind, reason, hint = _SURE[code]
        return kind(f"{doing}: {error}" + (f"; {hint}" if hint else ""), reason=reason)
    said = f"{doing}: {_SILENT.get(code, error)}"
    if changing:
        return InDoubt(f"{said}; whether it was done is not known: repeat the call, it goes on from there")
    return Unreachable(f"{said}; nothing was changed", reason="UNREACHABLE")


@contextlib.contextmanager
def reading(doing: str) -> Iterator[None]:
    """What happens in here changes nothing: without an answer it is Unreachable."""
    with _translated(doing, changing=False):
        yield


@contextlib.contextmanager
def changing(doing: str) -> Iterator[None]:
    """What happens in here changes the storage: without an answer it is InDoubt."""
    with _translated(doing, changing=True):
        yield


@contextlib.contextmanager
def _translated(doing: str, *, changing: bool) -> Iterator[None]:
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        raise told(error, doing, changing=changing) from error
