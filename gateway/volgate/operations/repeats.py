"""A call that comes again: by its request id it is answered from the journal."""

from __future__ import annotations

from volgate.errors import InvalidRequest
from volgate.store.records import OperationRecord, OperationState

__all__ = ["answering", "require_same_body"]


def answering(earlier: OperationRecord | None, digest: str) -> OperationRecord | None:
    """The earlier operation of the same request id, if it has the answer to this call: it did not fail. Raises InvalidRequest."""
    if earlier is None:
        return None
    require_same_body(earlier, digest)
    return None if earlier.state in (OperationState.FAILED, OperationState.CANCELLED) else earlier


def require_same_body(record: OperationRecord, digest: str) -> None:
    """Raise InvalidRequest (REQUEST_ID_REUSED) if the request id of an operation comes with another body."""
    if record.body_hash != digest:
        raise InvalidRequest(
            f"request_id {record.request_id!r} was used for {record.method} of {record.target} with another body",
            reason="REQUEST_ID_REUSED",
            field="request_id",
        )
