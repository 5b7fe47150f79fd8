"""The caller's W3C trace context, handed on with each call."""

from __future__ import annotations

import os
import re
import sys

__all__ = ["headers"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def headers() -> tuple[tuple[str, str], ...]:
    """The current context of OpenTelemetry if the program uses it, else that of the environment (TRACEPARENT, TRACESTATE)."""
    carrier: dict[str, str] = {}
    if "opentelemetry" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    if not carrier and _TRACEPARENT.fullmatch(parent := os.environ.get("TRACEPARENT", "")):
        carrier["traceparent"] = parent
        if (state := os.environ.get("TRACESTATE", "")).isascii() and state.isprintable() and state:
            carrier["tracestate"] = state
    return tuple(carrier.items())
