"""Spans: a failed one is told by its stable reason, never by a message, which may hold what no span should."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

__all__ = ["failed", "span"]

_tracer = trace.get_tracer("volgate")


@contextmanager
def span(name: str, *, parent: Context | None = None, kind: SpanKind = SpanKind.INTERNAL, **attributes: str) -> Iterator[Span]:
    """Run a block as a span below `parent` (None: below the current one); an attribute `a_b` is recorded as `volgate.a_b`."""
    recorded = {f"volgate.{key}": value for key, value in attributes.items()}
    with _tracer.start_as_current_span(
        name, context=parent, kind=kind, attributes=recorded, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:  # told of the span and raised on, a cancellation too
            failed(current, str(getattr(error, "reason", type(error).__name__)))
            raise


def failed(current: Span, reason: str) -> None:
    """Mark a span as failed."""
    current.set_attribute("volgate.reason", reason)
    current.set_status(Status(StatusCode.ERROR, reason))
