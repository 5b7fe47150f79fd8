"""The one interceptor: who may call, id, span, metrics, log line, and errors to statuses, for all four kinds of calls."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import aio
from opentelemetry import metrics
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate.edge.gate import Gate
from volgate.edge.identity import CALLER, Principal
from volgate.edge.policy import Rule, require_role, require_scope, rule_of, target_of
from volgate.edge.status import as_ours, to_status
from volgate.edge.types import Context
from volgate.errors import DeadlineExceeded, Denied, InvalidRequest, Unauthenticated, Unreachable, VolgateError
from volgate.tracing import span

__all__ = ["CALL_ID", "CallInterceptor"]

CALL_ID = "x-request-id"
"""Metadata that a caller may set; the answer carries it, or the id that was drawn, and so do the log lines and the span."""

_log = structlog.get_logger()
_seconds = metrics.get_meter("volgate").create_histogram("rpc.server.duration", unit="s", description="Time of one call")
_QUIET = ("/grpc.",)  # health checks and reflection are not worth a line each
_HEARTBEAT = "/volgate.v1.HostService/HeartbeatHost"  # as often as health checks, for each host
_ENDLESS = (
    "/volgate.v1.OperationService/WatchOperation",
    "/volgate.v1.AttachmentService/WatchPaths",
    "/volgate.v1.AgentService/Listen",
)
_WATCHES = ("/grpc.", *_ENDLESS)  # streams that end when the server stops, not when they are done
_MARGIN = 0.1  # less than what a mutation keeps for its own answer, which names the operation
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass
class _Call:
    """One call and what it came to."""

    method: str
    id: str
    code: str = "OK"
    reason: str = ""
    principal: str = ""
    denied: str | None = None
    """What a call that was denied was about."""


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every call."""

    def __init__(self, gate: Gate, reader_timeout: float) -> None:
        """`reader_timeout`: how long a stream may stay unread, seconds; then its call ends and lets go of what it holds."""
        self._gate = gate
        self._reader_timeout = reader_timeout
        self._watches: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.begun = 0

    def end_watches(self) -> None:
        """End the streams that would go on for as long as their readers like: UNAVAILABLE, reason STOPPING."""
        self._stopping = True
        for task in tuple(self._watches):
            task.cancel()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the handler, wrapped."""
        handler = await continuation(details)
        if handler is None:
            return handler
        makers: dict[tuple[bool, bool], tuple[Any, str]] = {
            (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
            (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
            (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
            (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
        }
        maker, name = makers[handler.request_streaming, handler.response_streaming]
        inner, parse = getattr(handler, name), _reading(handler.request_deserializer)
        stream = handler.request_streaming or handler.response_streaming
        if handler.response_streaming:
            inner = _writing_each(inner, None if details.method.startswith(_WATCHES) else self._reader_timeout)
        if not stream:
            inner = _in_time(inner)
        inner = _reading_each(inner, parse) if handler.request_streaming else _reading_one(inner, parse)
        # gRPC hands the bytes over as they came: nothing of them is looked at before it is known who sent them
        return maker(self._around(details.method, inner, parse, stream=stream), response_serializer=handler.response_serializer)

    def _around(self, method: str, inner: Any, parse: Any, *, stream: bool) -> Any:
        """Observe the call, let its caller in, and turn its failure into a status."""
        watch = method.startswith(_WATCHES)

        async def handle(request: Any, context: Context) -> Any:
            self.begun += 1
            with _observed(method, context) as call:
                try:
                    caller = self._gate.identify(context)
                    call.principal = str(caller)
                    rule = require_role(method, caller)
                    CALLER.set(caller)  # a call is a task of its own
                    with self._gate.admitted(caller, stream=stream):
                        work = inner(request, context, rule, caller)
                        return await (self._watched(work) if watch else work)
                except aio.AbortError:
                    raise
                except Exception as error:  # noqa: BLE001  # every failure leaves as a status: ours as they are, the rest as a bug
                    if isinstance(error, Denied | Unauthenticated):
                        call.denied = _about(method, request, parse)
                    await _abort(context, error, call)

        return handle

    async def _watched(self, work: Awaitable[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            raise Unreachable("the gateway is stopping; watch again when it is back", reason="STOPPING", retry_after=2.0) from None
        finally:
            self._watches.discard(task)


def _reading(deserialize: Any) -> Any:
    """Bytes that are no message are the caller's fault; gRPC would call it INTERNAL."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            raise InvalidRequest(f"request: the bytes are not a message of this call: {error}", field="request") from error

    return read


def _reading_one(inner: Any, parse: Any) -> Any:
    async def read(data: bytes, context: Context, rule: Rule, caller: Principal) -> Any:
        message = parse(data)
        require_scope(rule, caller, message)
        return await inner(message, context)

    return read


def _reading_each(inner: Any, parse: Any) -> Any:
    async def read(stream: AsyncIterator[bytes], rule: Rule, caller: Principal) -> AsyncIterator[Any]:
        async for data in stream:
            message = parse(data)
            require_scope(rule, caller, message)
            yield message

    return lambda stream, context, rule, caller: inner(read(stream, rule, caller), context)


def _about(method: str, request: Any, parse: Any) -> str:
    """What a denied call was about, for the log alone; "" of a stream, which is not read, and of what is no message."""
    try:
        return target_of(rule_of(method), parse(request)) if isinstance(request, bytes) else ""
    except (KeyError, VolgateError):
        return ""


def _in_time(inner: Any) -> Any:
    """Answer shortly before the caller's deadline, whatever hangs: gRPC's own end of a call tells nothing."""

    async def answered(request: Any, context: Context) -> Any:
        left = context.time_remaining()
        limit = asyncio.timeout(None if left is None else max(0.0, left - min(_MARGIN, left * 0.05)))
        try:
            async with limit:
                return await inner(request, context)
        except TimeoutError:
            if not limit.expired():
                raise
            told = "what this call asks (a storage, or libvirt) did not answer within the call's deadline; look at its health, and repeat"
            raise DeadlineExceeded(told, reason="NO_ANSWER") from None

    return answered


def _writing_each(inner: Any, patience: float | None) -> Any:
    """Drive a generator in the call's own task, so that it is closed there and at once when the caller goes away."""

    async def write(request: Any, context: Context) -> None:
        answers = inner(request, context)
        if not hasattr(answers, "__aiter__"):
            await answers  # writes by itself
            return
        async with aclosing(answers) as stream:
            async for answer in stream:
                try:
                    async with asyncio.timeout(patience):
                        await context.write(answer)
                except aio.InternalError:  # its library's word for a write that it could not do: the call is over
                    raise asyncio.CancelledError("the reader of the stream went away") from None
                except TimeoutError:
                    raise Unreachable(
                        f"the stream was not read for {patience:g} s and is ended; call again", reason="READER_STALLED"
                    ) from None

    return write


async def _abort(context: Context, error: Exception, call: _Call) -> NoReturn:
    ours = as_ours(error)
    call.code, call.reason = ours.status, ours.reason
    status = to_status(ours)
    context.set_trailing_metadata(((CALL_ID, call.id), *status.trailing_metadata))
    try:
        await context.abort(status.code, status.details)
    except aio.AbortError as aborted:
        aborted.reason = ours.reason  # type: ignore[attr-defined]  # what the span is told
        raise
    raise AssertionError("abort always raises")


@contextmanager
def _observed(method: str, context: Context) -> Iterator[_Call]:
    """Id, span, log context and the one line and measurement at the end."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    given = metadata.get(CALL_ID, "")
    call = _Call(method, given if _ID.fullmatch(given) else uuid.uuid4().hex)
    context.set_trailing_metadata(((CALL_ID, call.id),))
    began, name = time.monotonic(), method.lstrip("/")
    parent = TraceContextTextMapPropagator().extract(metadata)
    with (
        structlog.contextvars.bound_contextvars(call=call.id),
        span(name, parent=parent, kind=SpanKind.SERVER, call=call.id) as current,
    ):
        service, _, verb = name.rpartition("/")
        current.set_attributes({"rpc.system": "grpc", "rpc.service": service, "rpc.method": verb})
        try:
            yield call
        except BaseException:  # noted for the log line and raised on: a call that is cancelled ends so
            call.code = "CANCELLED" if call.code == "OK" else call.code
            raise
        finally:
            seconds = time.monotonic() - began
            current.set_attribute("rpc.grpc.status_code", call.code)
            _seconds.record(seconds, {"rpc.method": name, "rpc.grpc.status_code": call.code})
            quiet = method.startswith(_QUIET) or (method == _HEARTBEAT and call.code == "OK")
            if not quiet or call.denied is not None:
                level = _log.info if call.code == "OK" else _log.warning
                about = {} if call.denied is None else {"denied": True, "target": call.denied}
                level("call", method=name, principal=call.principal, code=call.code, reason=call.reason, seconds=round(seconds, 4), **about)
