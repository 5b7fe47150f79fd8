"""Whether plugins let a call go on: asked before anything is recorded, of a plan as of the mutation."""

from __future__ import annotations

from volgate.backend.hooks import AdmitRequest
from volgate.operations.requests import Caller, Request
from volgate.registry import Registry

__all__ = ["admit"]


def admit(registry: Registry, request: Request, caller: Caller) -> None:
    """Raise what the first plugin raises that refuses it."""
    labels = getattr(request, "labels", None) or {}
    registry.admit(AdmitRequest(request.method, request.target, caller.principal, labels, getattr(request, "size", 0)))
