"""Errors to statuses: the only place where our tree becomes google.rpc.

A status travels in HTTP/2 trailers, of which peers take 8 KiB: texts and lists are cut so that the whole always arrives.
"""

from __future__ import annotations

import uuid

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from volgate.errors import VolgateError
from volgate.secret import redacted

__all__ = ["as_ours", "to_status"]

_DOMAIN = "volgate"
_MESSAGE_MOST = 1000  # bytes; percent-encoded in one trailer, base64 in another
_TEXT_MOST = 200
_HOLDERS_MOST = 1500
_log = structlog.get_logger()


def as_ours(error: BaseException) -> VolgateError:
    """One of ours as it is; anything else is a bug: logged with its traceback under an opaque id."""
    if isinstance(error, VolgateError):
        return error
    opaque = uuid.uuid4().hex[:12]
    _log.error("bug", id=opaque, exc_info=error)
    return VolgateError(f"the gateway failed by a bug; its log has it under id {opaque}", metadata={"id": opaque})


def to_status(error: VolgateError) -> grpc.Status:
    """A status with ErrorInfo, and RetryInfo, PreconditionFailure or BadRequest where they say something."""
    message = redacted(error.message)
    metadata = {key: _cut(redacted(value), _TEXT_MOST) for key, value in error.metadata.items()}
    if error.operation:
        metadata["operation"] = error.operation
    details: list[any_pb2.Any] = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=metadata))]
    if error.retryable:
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after or 1.0))))
    if error.holders:
        details.append(_pack(_holders(error)))
    if error.field:
        text = _cut(message, _TEXT_MOST)
        violation = error_details_pb2.BadRequest.FieldViolation(field=_cut(error.field, _TEXT_MOST), description=text)
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    code = code_pb2.Code.Value(error.status)
    return rpc_status.to_status(status_pb2.Status(code=code, message=_cut(message, _MESSAGE_MOST), details=details))


def _holders(error: VolgateError) -> error_details_pb2.PreconditionFailure:
    """As many holders as fit; the last entry counts the others."""
    failure = error_details_pb2.PreconditionFailure()
    for index, holder in enumerate(error.holders):
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=holder.kind, subject=holder.name, description=_cut(redacted(holder.detail), _TEXT_MOST)
        )
        if failure.ByteSize() + violation.ByteSize() > _HOLDERS_MOST:
            more = f"and {len(error.holders) - index} more"
            failure.violations.add(type=holder.kind, subject="", description=more)
            break
        failure.violations.append(violation)
    return failure


def _cut(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8; as one plain line, since non-ASCII takes three times the room in a trailer."""
    plain = text.encode("ascii", "backslashreplace").decode() if len(text.encode()) > most // 3 else text
    return plain if len(plain.encode()) <= most else plain[: most - 3] + "..."


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
