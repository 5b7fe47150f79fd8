"""What a call can fail with, read from the rich status."""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

__all__ = ["VolgateError", "from_rpc"]


class VolgateError(Exception):
    """A failed call.

    `code` is the gRPC code's name, `reason` the stable word, `holders` who blocks (type, name, detail), `field` the request's
    field, `retry_after` seconds or None, `operation` the operation's name if one is known.
    """

    def __init__(self, code: str, message: str) -> None:
        """Build the error; `from_rpc` fills in the details."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = code
        self.holders: list[tuple[str, str, str]] = []
        self.field = ""
        self.retry_after: float | None = None
        self.operation = ""


def from_rpc(error: grpc.RpcError) -> VolgateError:
    """Read a status with all its details."""
    ours = VolgateError(error.code().name, error.details() or "")
    status = rpc_status.from_call(cast("grpc.Call", error))
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            ours.reason, ours.operation = info.reason, info.metadata.get("operation", "")
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            ours.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR):
            failure = error_details_pb2.PreconditionFailure()
            detail.Unpack(failure)
            ours.holders = [(v.type, v.subject, v.description) for v in failure.violations]
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            ours.field = bad.field_violations[0].field if bad.field_violations else ""
    return ours
