"""What a call can fail with: one class per kind of failure, filled from the rich status."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    import grpc
    from google.protobuf.any_pb2 import Any as Packed

    from volgate.v1.operation_pb2 import Operation

__all__ = [
    "AlreadyExists",
    "Bug",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "Denied",
    "FieldViolation",
    "Holder",
    "InDoubt",
    "InUse",
    "InvalidRequest",
    "NotFound",
    "OutOfRange",
    "OutOfSpace",
    "Precondition",
    "Unavailable",
    "Unsupported",
    "VolgateError",
    "code_of_reason",
    "from_operation",
    "from_rpc",
    "local",
]


class Holder(NamedTuple):
    """Who blocks a call: a snapshot, a child, an attachment, another process."""

    kind: str
    name: str
    detail: str = ""


class FieldViolation(NamedTuple):
    """A field of the request that is wrong, and why."""

    field: str
    description: str


class VolgateError(Exception):
    """A failed call.

    `code` is the gRPC code's name, `reason` the stable word (see volgate.v1.Reason) or the code where the server said none,
    `holders` who blocks, `fields` the wrong fields, `retry_after` seconds or None, `operation` the operation's name if one
    is known, `metadata` the rest of the error's facts. `retryable` tells that the same call may be repeated safely.
    """

    def __init__(self, code: str, message: str) -> None:
        """Build the error; `from_rpc` fills in the details."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = code
        self.holders: list[Holder] = []
        self.fields: list[FieldViolation] = []
        self.retry_after: float | None = None
        self.operation = ""
        self.metadata: dict[str, str] = {}
        self.retryable = False

    @property
    def field(self) -> str:
        """The first wrong field, or ""."""
        return self.fields[0].field if self.fields else ""


class InvalidRequest(VolgateError):
    """The request itself is wrong; `fields` says where."""


class OutOfRange(VolgateError):
    """A size or limit is not possible."""


class NotFound(VolgateError):
    """The object does not exist."""


class AlreadyExists(VolgateError):
    """The name is taken by something that differs from what was asked."""


class Precondition(VolgateError):
    """The state of the object forbids the call."""


class InUse(Precondition):
    """Somebody uses the object; `holders` says who."""


class Unsupported(VolgateError):
    """The backend or the host cannot do this."""


class OutOfSpace(VolgateError):
    """No space, no quota, no free slot."""


class Denied(VolgateError):
    """A right is missing."""


class Unavailable(VolgateError):
    """The gateway, its storage or libvirt does not answer, or is too busy."""


class InDoubt(VolgateError):
    """The outcome is not known yet; the same call again learns it."""


class DeadlineExceeded(VolgateError):
    """No answer in time; a mutation goes on, and the same call again joins it."""


class Cancelled(VolgateError):
    """The operation was cancelled and undone, or the connection was closed."""


class DataLoss(VolgateError):
    """Data is damaged."""


class Bug(VolgateError):
    """The gateway failed by a bug; the message carries an id that its log explains."""


_BY_CODE: dict[str, type[VolgateError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": OutOfRange,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": Precondition,
    "UNIMPLEMENTED": Unsupported,
    "RESOURCE_EXHAUSTED": OutOfSpace,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Denied,
    "UNAVAILABLE": Unavailable,
    "ABORTED": InDoubt,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "DATA_LOSS": DataLoss,
    "INTERNAL": Bug,
}

# An operation keeps its reason without a code, as the contract lists them; what is not here is FAILED_PRECONDITION.
_REASONS = {
    "INVALID_ARGUMENT": (
        "INVALID_FIELD",
        "REQUEST_ID_REUSED",
        "BAD_PAGE_TOKEN",
    ),
    "NOT_FOUND": (
        "NOT_FOUND",
        "DOMAIN_NOT_FOUND",
        "POOL_DIRECTORY_MISSING",
        "DISK_NOT_FOUND",
        "CEPH_POOL_MISSING",
        "ISCSI_TARGET_MISSING",
    ),
    "ALREADY_EXISTS": (
        "EXISTS_DIFFERENT",
        "HOST_CLONED",
        "HOST_NAME_TAKEN",
    ),
    "RESOURCE_EXHAUSTED": (
        "OUT_OF_SPACE",
        "OVERSUBSCRIBED",
        "NO_FREE_SLOT",
        "STATE_FULL",
        "QUOTA_EXCEEDED",
        "SNAPSHOT_LIMIT",
        "LVM_POOL_FULL",
    ),
    "OUT_OF_RANGE": ("OUT_OF_RANGE",),
    "UNIMPLEMENTED": (
        "UNSUPPORTED",
        "FORMAT_DIFFERS",
        "RBD_UNSUPPORTED",
        "LIBISCSI_UNSUPPORTED",
        "NO_RESERVATIONS",
    ),
    "PERMISSION_DENIED": (
        "DENIED",
        "ROLE_TOO_SMALL",
        "OUT_OF_SCOPE",
        "HOST_OF_ANOTHER",
        "CEPH_DENIED",
        "ISCSI_DENIED",
    ),
    "UNAUTHENTICATED": ("BAD_CERTIFICATE",),
    "UNAVAILABLE": (
        "BUSY",
        "UNREACHABLE",
        "DATABASE_DOWN",
        "TAKEN_OVER",
        "STOPPING",
        "READER_STALLED",
        "POOL_DOWN",
        "LANE_TIMEOUT",
        "LIBVIRT_LOST",
        "LIBVIRT_AUTH",
        "SPAWNER_CLOSED",
        "OUTPUT_TOO_LARGE",
        "IO_ERROR",
        "STALE_HANDLE",
        "FENCE_UNPROVEN",
        "TOO_MANY_FILES",
        "QEMU_LOST",
        "WORKER_LOST",
        "WORKER_STUCK",
        "COMMAND_KILLED",
        "OVERLAY_TORN",
        "POOL_OCCUPIED",
        "TOO_MANY_CALLS",
        "HOST_DOWN",
        "HOST_UNSETTLED",
        "CEPH_UNREACHABLE",
        "SECRET_LOST",
        "THAWED_EARLY",
        "ISCSI_UNREACHABLE",
        "TGT_DOWN",
        "LUN_MISSING",
        "MULTIPATH_REFUSED",
        "TARGET_BUSY",
    ),
    "ABORTED": (
        "IN_DOUBT",
        "DOMAIN_BUSY",
        "SPAWNER_LOST",
    ),
    "DEADLINE_EXCEEDED": (
        "STILL_RUNNING",
        "COMMAND_TIMEOUT",
        "NO_ANSWER",
    ),
    "CANCELLED": ("CANCELLED",),
    "DATA_LOSS": (
        "DATA_LOSS",
        "TAG_DAMAGED",
        "LAYER_MISSING",
        "CHAIN_MISMATCH",
        "IMAGE_DAMAGED",
    ),
    "INTERNAL": (
        "BUG",
        "OS_ERROR",
    ),
}


def from_rpc(error: grpc.RpcError, address: str = "") -> VolgateError:
    """Read a status with all its details; `address` is named where the gateway itself did not answer."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    code, message = error.code().name, error.details() or ""
    status = rpc_status.from_call(cast("grpc.Call", error))
    details = list(status.details) if status else []
    info = error_details_pb2.ErrorInfo()
    answered = any(detail.Unpack(info) for detail in details)
    if not answered and code == "UNAVAILABLE":
        message = f"no gateway answers at {address}: {message}"
    elif not answered and code == "DEADLINE_EXCEEDED":
        message = f"no answer from {address} in time; a mutation goes on, repeat the call to learn its outcome"
    kind = InUse if info.reason == "IN_USE" else _BY_CODE.get(code, VolgateError)
    ours = kind(code, message)
    # a gateway that closes answers UNAVAILABLE or CANCELLED without a word of ours; what this side cancelled it says itself
    here = message.startswith(("Channel closed", "Locally cancelled"))
    ours.retryable = not answered and (code == "UNAVAILABLE" or (code == "CANCELLED" and not here))
    if answered:
        ours.reason, ours.metadata = info.reason, dict(info.metadata)
        ours.operation = info.metadata.get("operation", "")
    for detail in details:
        _add(ours, detail)
    return ours


def _add(ours: VolgateError, detail: Packed) -> None:
    from google.rpc import error_details_pb2

    retry = error_details_pb2.RetryInfo()
    failure = error_details_pb2.PreconditionFailure()
    bad = error_details_pb2.BadRequest()
    if detail.Unpack(retry):
        ours.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        ours.retryable = True
    elif detail.Unpack(failure):
        ours.holders += [Holder(v.type, v.subject, v.description) for v in failure.violations]
    elif detail.Unpack(bad):
        ours.fields += [FieldViolation(v.field, v.description) for v in bad.field_violations]


def code_of_reason(reason: str) -> str:
    """The gRPC code that the contract gives a reason (volgate.v1.Reason)."""
    return next((code for code, reasons in _REASONS.items() if reason in reasons), "FAILED_PRECONDITION")


def from_operation(operation: Operation) -> VolgateError:
    """The error of an operation that ended without success."""
    reason = operation.error_reason or "CANCELLED"
    code = code_of_reason(reason)
    kind = InUse if reason == "IN_USE" else _BY_CODE[code]
    ours = kind(code, operation.error_message or f"{operation.method} of {operation.target} was cancelled and undone")
    ours.reason, ours.operation = reason, operation.name
    return ours


def local(field: str, message: str) -> InvalidRequest:
    """An argument that is wrong before anything is sent."""
    ours = InvalidRequest("INVALID_ARGUMENT", f"{field}: {message}")
    ours.reason = "INVALID_FIELD"
    ours.fields = [FieldViolation(field, message)]
    return ours
