"""Typed requests and answers to the journal's JSON and back."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from volgate import errors
from volgate.errors import Holder, VolgateError
from volgate.operations import requests
from volgate.operations.requests import Request
from volgate.secret import redacted
from volgate.store.records import OperationRecord

__all__ = ["body_hash", "decode_answer", "decode_failure", "decode_request", "encode", "encode_failure"]

_KINDS: dict[str, type[Any]] = {
    kind.method: kind
    for kind in (
        requests.CreateVolume,
        requests.DeleteVolume,
        requests.ExpandVolume,
        requests.UpdateVolume,
        requests.RevertVolume,
        requests.ImportVolume,
        requests.ExportVolume,
        requests.AdoptVolume,
        requests.CreateSnapshot,
        requests.CreateSnapshotGroup,
        requests.DeleteSnapshot,
        requests.AttachVolume,
        requests.DetachVolume,
        requests.FenceHost,
        requests.UnfenceHost,
        requests.CollapseLayers,
    )
}


def encode(value: object) -> bytes:
    """Encode a request, an answer or facts as JSON."""
    return msgspec.json.encode(value, order="sorted")


def decode_request(method: str, data: bytes) -> Request:
    """Read a request back."""
    found: Request = _requests[method].decode(data)
    return found


class _Failure(msgspec.Struct, frozen=True):
    """What of an error its record has no column for."""

    kind: str = "VolgateError"
    field: str = ""
    retry_after: float | None = None
    holders: tuple[Holder, ...] = ()
    metadata: dict[str, str] = {}


_requests = {name: msgspec.json.Decoder(kind) for name, kind in _KINDS.items()}
_failures = msgspec.json.Decoder(_Failure)


def encode_failure(error: VolgateError) -> bytes:
    """What the journal keeps of an error beside its reason and message: a caller who joined elsewhere gets the same one."""
    told = {key: redacted(value) for key, value in error.metadata.items()}
    holders = tuple(Holder(one.kind, one.name, redacted(one.detail)) for one in error.holders)
    return encode(_Failure(type(error).__name__, error.field, error.retry_after, holders, told))


def decode_failure(record: OperationRecord) -> VolgateError:
    """The error of an operation that failed."""
    kept = _failures.decode(record.result) if record.result else _Failure()
    kind = getattr(errors, kept.kind, VolgateError)
    failure: VolgateError = kind(record.error_message, reason=record.error_reason)
    failure.retry_after = kept.retry_after
    failure.operation, failure.field, failure.holders = f"operations/{record.id}", kept.field, kept.holders
    failure.metadata = dict(kept.metadata)
    return failure


def decode_answer(record: OperationRecord, kind: Any) -> object:
    """The answer of an operation that was done, as its handler's type."""
    return msgspec.json.decode(record.result, type=kind) if record.result else None


def body_hash(request: Request) -> str:
    """Identify a request by all it says; a spooled upload by its content, not by its path."""
    tree = msgspec.to_builtins(request)
    if isinstance(request, requests.ImportVolume) and request.spooled:
        tree.pop("path")
    if isinstance(request, requests.DetachVolume):
        tree.pop("wait_seconds")  # how long a caller waits does not change what is done
        tree.pop("volume")  # looked up by the gateway: a repeat that comes after the end finds none
    return hashlib.sha256(request.method.encode() + b"\0" + msgspec.json.encode(tree, order="sorted")).hexdigest()
