"""The closed tree of errors: each class fixes its gRPC status, its stable reason and whether a retry is safe.

A plugin keeps one table from its library's exceptions to these classes and wraps native calls in :func:`translate`.
The edge alone turns them into statuses. Anything else that escapes is a bug and becomes INTERNAL.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "REASONS",
    "AlreadyExists",
    "Busy",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "Denied",
    "Holder",
    "InDoubt",
    "InUse",
    "InvalidRequest",
    "NotFound",
    "OutOfRange",
    "OutOfSpace",
    "Precondition",
    "Unauthenticated",
    "Unreachable",
    "Unsupported",
    "VolgateError",
    "from_os_error",
    "translate",
]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who blocks a call: a child, a snapshot, a watcher, an attachment."""

    kind: str
    name: str
    detail: str = ""


class VolgateError(Exception):
    """An answer that is no success.

    `message` says what failed, what holds it and what to do. `reason` is the stable word that programs compare;
    each has an entry in docs/runbook.md. `holders` are the objects that block. `field` is the request's field path.
    """

    status: ClassVar[str] = "INTERNAL"
    default_reason: ClassVar[str] = "BUG"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        holders: tuple[Holder, ...] = (),
        field: str = "",
        retry_after: float | None = None,
        operation: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Build the error; `retry_after` is in seconds."""
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.holders = holders
        self.field = field
        self.retry_after = retry_after
        self.operation = operation
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidRequest(VolgateError):
    """The request itself is wrong; nothing was touched. `field` names the culprit."""

    status = "INVALID_ARGUMENT"
    default_reason = "INVALID_FIELD"


class OutOfRange(VolgateError):
    """A size or limit that the backend cannot serve (a shrink, a volume larger than allowed)."""

    status = "OUT_OF_RANGE"
    default_reason = "OUT_OF_RANGE"


class NotFound(VolgateError):
    """The named object does not exist."""

    status = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExists(VolgateError):
    """The name is taken by something that differs from what was asked; the message names the difference."""

    status = "ALREADY_EXISTS"
    default_reason = "EXISTS_DIFFERENT"


class Precondition(VolgateError):
    """The state of the object forbids the call."""

    status = "FAILED_PRECONDITION"
    default_reason = "PRECONDITION"


class InUse(Precondition):
    """Somebody uses the object: children, snapshots, attachments, locks. `holders` names them."""

    default_reason = "IN_USE"


class Unsupported(VolgateError):
    """The backend, the format or the host cannot do this at all."""

    status = "UNIMPLEMENTED"
    default_reason = "UNSUPPORTED"


class OutOfSpace(VolgateError):
    """No space, no quota, no free slot."""

    status = "RESOURCE_EXHAUSTED"
    default_reason = "OUT_OF_SPACE"


class Denied(VolgateError):
    """The gateway or the caller lacks a right."""

    status = "PERMISSION_DENIED"
    default_reason = "DENIED"


class Unauthenticated(VolgateError):
    """The gateway does not know who calls: the certificate says it in no usable way."""

    status = "UNAUTHENTICATED"
    default_reason = "BAD_CERTIFICATE"


class Busy(VolgateError):
    """The lane or the operation queue is full; back off."""

    status = "UNAVAILABLE"
    default_reason = "BUSY"
    retryable = True

    def __init__(self, message: str, *, retry_after: float = 1.0, reason: str = "") -> None:
        """Build the error; `retry_after` is in seconds."""
        super().__init__(message, retry_after=retry_after, reason=reason)


class Unreachable(VolgateError):
    """The storage, libvirt or a host does not answer; nothing was changed."""

    status = "UNAVAILABLE"
    default_reason = "UNREACHABLE"
    retryable = True


class InDoubt(VolgateError):
    """The outcome is not known yet; repeat the same call, it joins the operation or learns its result."""

    status = "ABORTED"
    default_reason = "IN_DOUBT"
    retryable = True


class DeadlineExceeded(VolgateError):
    """The caller's deadline passed; the operation goes on and a repeat joins it."""

    status = "DEADLINE_EXCEEDED"
    default_reason = "STILL_RUNNING"
    retryable = True


class Cancelled(VolgateError):
    """The operation was cancelled and undone."""

    status = "CANCELLED"
    default_reason = "CANCELLED"


class DataLoss(VolgateError):
    """Data is damaged; page a human."""

    status = "DATA_LOSS"
    default_reason = "DATA_LOSS"


_BY_ERRNO: dict[int, tuple[type[VolgateError], str]] = {
    errno.ENOENT: (NotFound, "NOT_FOUND"),
    errno.ENOSPC: (OutOfSpace, "OUT_OF_SPACE"),
    errno.EDQUOT: (OutOfSpace, "QUOTA_EXCEEDED"),
    errno.EFBIG: (OutOfRange, "OUT_OF_RANGE"),
    errno.EROFS: (Precondition, "READ_ONLY_FILE_SYSTEM"),
    errno.EACCES: (Denied, "DENIED"),
    errno.EPERM: (Denied, "DENIED"),
    errno.EOPNOTSUPP: (Unsupported, "UNSUPPORTED"),
    errno.EBUSY: (InUse, "IN_USE"),
    errno.ETXTBSY: (InUse, "IN_USE"),
    errno.EIO: (Unreachable, "IO_ERROR"),
    # what the kernel's block layer says, besides EIO, of a disk that is gone or whose last way is (block/blk-core.c)
    errno.ENXIO: (Unreachable, "IO_ERROR"),
    errno.ENODEV: (Unreachable, "IO_ERROR"),
    errno.ENOLINK: (Unreachable, "IO_ERROR"),
    errno.EREMOTEIO: (Unreachable, "IO_ERROR"),
    errno.ESTALE: (Unreachable, "STALE_HANDLE"),
    errno.ENOTCONN: (Unreachable, "UNREACHABLE"),
    errno.ETIMEDOUT: (Unreachable, "UNREACHABLE"),
    errno.EMFILE: (Busy, "TOO_MANY_FILES"),
    errno.ENFILE: (Busy, "TOO_MANY_FILES"),
}


def from_os_error(error: OSError, doing: str) -> VolgateError:
    """Return the class for an `OSError`; `doing` says what the gateway was at (`create volume a`)."""
    kind, reason = _BY_ERRNO.get(error.errno or 0, (VolgateError, "OS_ERROR"))
    where = f" ({error.filename})" if error.filename else ""
    return kind(f"{doing}: {error.strerror or error}{where}", reason=reason)


@contextlib.contextmanager
def translate(doing: str, table: Mapping[type[BaseException], type[VolgateError]] | None = None) -> Iterator[None]:
    """Turn native exceptions into ours: the most specific row of `table` wins, then `OSError` by errno.

    `doing` names the act and its object (`create volume a`) and begins the message.
    """
    try:
        yield
    except VolgateError:
        raise
    except Exception as error:  # re-raised below: this is the one table lookup
        for kind in type(error).__mro__:
            if table and kind in table:
                raise table[kind](f"{doing}: {error}") from error
        if isinstance(error, OSError):
            raise from_os_error(error, doing) from error
        raise


def _tree(kind: type[VolgateError]) -> Iterator[type[VolgateError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


REASONS: dict[str, type[VolgateError]] = {kind.default_reason: kind for kind in _tree(VolgateError)}
