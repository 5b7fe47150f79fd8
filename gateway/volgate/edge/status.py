"""Errors to statuses: the only place where our tree becomes google.rpc."""

from __future__ import annotations

import uuid

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from volgate.errors import VolgateError

__all__ = ["as_ours", "code_of", "to_status"]

_DOMAIN = "volgate"
_log = structlog.get_logger()


def as_ours(error: BaseException) -> VolgateError:
    """One of ours as it is; anything else is a bug: logged with its traceback under an opaque id."""
    if isinstance(error, VolgateError):
        return error
    opaque = uuid.uuid4().hex[:12]
    _log.error("bug", id=opaque, exc_info=error)
    return VolgateError(f"the gateway failed by a bug; its log has it under id {opaque}", metadata={"id": opaque})


def code_of(error: VolgateError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return grpc.StatusCode[error.status]


def to_status(error: VolgateError) -> grpc.Status:
    """A status with ErrorInfo, and RetryInfo, PreconditionFailure or BadRequest where they say something."""
    metadata = dict(error.metadata)
    if error.operation:
        metadata["operation"] = error.operation
    details: list[any_pb2.Any] = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=metadata))]
    if error.retryable:
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after or 1.0))))
    if error.holders:
        violations = [
            error_details_pb2.PreconditionFailure.Violation(type=holder.kind, subject=holder.name, description=holder.detail)
            for holder in error.holders
        ]
        details.append(_pack(error_details_pb2.PreconditionFailure(violations=violations)))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    code = code_pb2.Code.Value(error.status)
    return rpc_status.to_status(status_pb2.Status(code=code, message=error.message, details=details))


def _pack(message: error_details_pb2.ErrorInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
