"""Typed requests and answers to the journal's JSON and back."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from volgate.operations import requests
from volgate.operations.requests import Request

__all__ = ["body_hash", "decode_request", "encode"]

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
        requests.DeleteSnapshot,
        requests.AttachVolume,
        requests.DetachVolume,
        requests.CollapseLayers,
    )
}


def encode(value: object) -> bytes:
    """Encode a request, an answer or facts as JSON."""
    return msgspec.json.encode(value, order="sorted")


def decode_request(method: str, data: bytes) -> Request:
    """Read a request back."""
    found: Request = msgspec.json.decode(data, type=_KINDS[method])
    return found


def body_hash(request: Request) -> str:
    """Identify a request by all it says; a spooled upload by its content, not by its path."""
    tree = msgspec.to_builtins(request)
    if isinstance(request, requests.ImportVolume) and request.spooled:
        tree.pop("path")
    if isinstance(request, requests.DetachVolume):
        tree.pop("wait_seconds")  # how long a caller waits does not change what is done
        tree.pop("volume")  # looked up by the gateway: a repeat that comes after the end finds none
    return hashlib.sha256(request.method.encode() + b"\0" + msgspec.json.encode(tree, order="sorted")).hexdigest()
