"""The one interceptor: id, span, metrics, log line, and errors to statuses, for all four kinds of calls."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import structlog
from grpc import aio
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate.edge.status import as_ours, to_status
from volgate.edge.types import Context

__all__ = ["CallInterceptor"]

_log = structlog.get_logger()
_tracer = trace.get_tracer("volgate")
_seconds = metrics.get_meter("volgate").create_histogram("rpc.server.duration", unit="s", description="Time of one call")
_QUIET = ("/grpc.",)  # health checks and reflection are not worth a line each


class _Outcome:
    """What a call came to; set by the handler's wrapper, read when the call ends."""

    code = "OK"
    reason = ""


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every call."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the handler, wrapped."""
        handler = await continuation(details)
        if handler is None:
            return handler
        method = details.method
        kind = (handler.request_streaming, handler.response_streaming)
        makers: dict[tuple[bool, bool], Any] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        inner = {
            (False, False): handler.unary_unary,
            (False, True): handler.unary_stream,
            (True, False): handler.stream_unary,
            (True, True): handler.stream_stream,
        }[kind]
        wrapped = _streaming(method, inner) if handler.response_streaming else _unary(method, inner)
        return makers[kind](wrapped, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer)


def _unary(method: str, inner: Any) -> Any:
    async def call(request: Any, context: Context) -> Any:
        with _around(method, context) as outcome:
            try:
                return await inner(request, context)
            except aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  # every failure leaves as a status: ours as they are, the rest as a bug
                await _abort(context, error, outcome)

    return call


def _streaming(method: str, inner: Any) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        with _around(method, context) as outcome:
            try:
                answers = inner(request, context)
                if hasattr(answers, "__aiter__"):
                    async for answer in answers:
                        yield answer
                else:
                    await answers
            except aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  # every failure leaves as a status: ours as they are, the rest as a bug
                await _abort(context, error, outcome)

    return call


async def _abort(context: Context, error: Exception, outcome: _Outcome) -> NoReturn:
    ours = as_ours(error)
    outcome.code, outcome.reason = ours.status, ours.reason
    trace.get_current_span().set_attribute("volgate.reason", ours.reason)
    status = to_status(ours)
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError("abort always raises")


@contextmanager
def _around(method: str, context: Context) -> Iterator[_Outcome]:
    """Span, log context and the one line and measurement at the end."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    parent = TraceContextTextMapPropagator().extract(metadata)
    began, outcome = time.monotonic(), _Outcome()
    name = method.lstrip("/")
    with (
        structlog.contextvars.bound_contextvars(call=uuid.uuid4().hex[:12]),
        _tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER, attributes={"rpc.system": "grpc", "rpc.method": name}),
    ):
        try:
            yield outcome
        except BaseException:
            outcome.code = "CANCELLED" if outcome.code == "OK" else outcome.code
            raise
        finally:
            seconds = time.monotonic() - began
            _seconds.record(seconds, {"rpc.method": name, "rpc.grpc.status_code": outcome.code})
            if not method.startswith(_QUIET):
                level = _log.info if outcome.code == "OK" else _log.warning
                level("call", method=name, code=outcome.code, reason=outcome.reason, seconds=round(seconds, 4))
