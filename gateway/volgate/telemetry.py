"""OpenTelemetry providers and exporters, structured logs. Everything else uses the API packages alone; unconfigured, they cost nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog
from opentelemetry import metrics, trace

__all__ = ["TelemetrySettings", "configure", "observe_lanes"]


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Where spans and metrics go; "" means nowhere. `prometheus_listen` is host:port."""

    otlp_endpoint: str = ""
    prometheus_listen: str = ""
    log_level: str = "info"
    service_name: str = "volgate"


def configure(settings: TelemetrySettings) -> None:
    """Set up logs, and the exporters that are asked for; each is imported only then."""
    _configure_logs(settings.log_level)
    if not (settings.otlp_endpoint or settings.prometheus_listen):
        return
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create({"service.name": settings.service_name})
    readers: list[Any] = []
    if settings.otlp_endpoint:
        readers.append(_otlp(settings.otlp_endpoint, resource))
    if settings.prometheus_listen:
        readers.append(_prometheus(settings.prometheus_listen))
    from opentelemetry.sdk.metrics import MeterProvider

    metrics.set_meter_provider(MeterProvider(metric_readers=readers, resource=resource))


def _otlp(endpoint: str, resource: Any) -> Any:
    """Send spans, and return the reader that sends metrics."""
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint))


def _prometheus(listen: str) -> Any:
    """Serve metrics over HTTP and return their reader."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    start_http_server(int(port), addr=host or "127.0.0.1")
    return PrometheusMetricReader()


def observe_lanes(lanes: Callable[[], Iterable[tuple[str, int, int, int]]]) -> None:
    """Offer the slots, the queue and the refusals of every lane as gauges: name, running, queued, refused."""
    meter = metrics.get_meter("volgate")

    def gauge(index: int) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        return lambda _options: [metrics.Observation(float(row[index]), {"pool": row[0]}) for row in lanes()]

    for index, name in enumerate(("running", "queued", "refused"), start=1):
        meter.create_observable_gauge(f"volgate.lane.{name}", [gauge(index)])


def _configure_logs(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=repr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _add_trace(_logger: Any, _name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the trace and the span that a line belongs to."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        entry["trace_id"] = f"{context.trace_id:032x}"
        entry["span_id"] = f"{context.span_id:016x}"
    return entry
