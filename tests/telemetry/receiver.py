"""A receiver of OTLP on the loopback: keeps every span that a gateway sends, by the protocol that real collectors speak."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

__all__ = ["Receiver", "Span"]


@dataclass(frozen=True)
class Span:
    """One span as it was sent."""

    name: str
    trace: str
    id: str
    parent: str
    failed: bool
    began: int
    ended: int
    attributes: dict[str, Any] = field(hash=False)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Listens on a free port; `raw` keeps all that came, as text, to search it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: set[str] = set()
        self.raw: list[str] = []
        self._came = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  # the protocol's name, the same for both services
        with self._came:
            self.raw.append(str(request))
            if hasattr(request, "resource_metrics"):
                self.metrics |= {m.name for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics}
                answer: Any = metrics_service_pb2.ExportMetricsServiceResponse()
            else:
                self.spans += [_read(span) for r in request.resource_spans for s in r.scope_spans for span in s.spans]
                answer = trace_service_pb2.ExportTraceServiceResponse()
            self._came.notify_all()
        return answer

    def trace(self, identifier: str, *, until: str, caller: str, timeout: float = 20.0) -> list[Span]:
        """Every span of a trace, once the one whose name begins with `until` has come and each span's parent too.

        An operation's span may end after that of its call; `caller` is the span outside that began it all.
        """
        deadline = time.monotonic() + timeout
        with self._came:
            while True:
                found = [span for span in self.spans if span.trace == identifier]
                known = {caller, *(span.id for span in found)}
                if any(span.name.startswith(until) for span in found) and all(span.parent in known for span in found):
                    return sorted(found, key=lambda span: span.began)
                left = deadline - time.monotonic()
                assert left > 0, f"no span {until!r}, or a parent is missing: {[(span.name, span.parent in known) for span in found]}"
                self._came.wait(left)


def _read(span: Any) -> Span:
    attributes = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
    failed = span.status.code == 2  # STATUS_CODE_ERROR
    began, ended = span.start_time_unix_nano, span.end_time_unix_nano
    return Span(span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), failed, began, ended, attributes)
