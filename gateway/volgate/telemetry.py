"""OpenTelemetry providers and exporters, structured logs. Everything else uses the API packages alone; unconfigured, they cost nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog
from opentelemetry import metrics, trace

from volgate.model import Capacity, Health
from volgate.secret import redacted

__all__ = [
    "ObservedLane",
    "ObservedPool",
    "TelemetrySettings",
    "configure",
    "configure_logs",
    "observe_hosts",
    "observe_lanes",
    "observe_operations",
    "observe_pools",
]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Where spans and metrics go; "" means nowhere. `prometheus_listen` is host:port."""

    otlp_endpoint: str = ""
    prometheus_listen: str = ""
    log_level: str = "info"
    service_name: str = "volgate"


class ObservedLane(Protocol):
    """What is measured of a lane."""

    @property
    def name(self) -> str:
        """Whose it is."""

    @property
    def width(self) -> int:
        """Its slots."""

    @property
    def running(self) -> int:
        """Slots that are taken now."""

    @property
    def queued(self) -> int:
        """Calls that wait now."""

    @property
    def refused(self) -> int:
        """Calls that were refused since it was made."""


class ObservedPool(Protocol):
    """What is measured of a pool: what the gateway knows already, so that a storage that hangs keeps no exporter waiting."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def health(self) -> Health:
        """What its last check found."""

    @property
    def known_capacity(self) -> Capacity | None:
        """What it told last; None if it never did."""

    @property
    def stuck(self) -> int:
        """Workers that were killed and that the kernel does not let go."""


def configure(settings: TelemetrySettings) -> Callable[[], None]:
    """Set up logs, and the exporters that are asked for; each is imported only then. Returns what sends the rest at the end."""
    configure_logs(settings.log_level)
    if not (settings.otlp_endpoint or settings.prometheus_listen):
        return lambda: None
    from opentelemetry.sdk.metrics import Histogram, MeterProvider
    from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create({"service.name": settings.service_name})
    readers: list[Any] = []
    ends: list[Callable[[], None]] = []
    if settings.otlp_endpoint:
        reader, end = _otlp(settings.otlp_endpoint, resource)
        readers.append(reader)
        ends.append(end)
    if settings.prometheus_listen:
        readers.append(_prometheus(settings.prometheus_listen))
    seconds = View(instrument_type=Histogram, instrument_unit="s", aggregation=ExplicitBucketHistogramAggregation(_BUCKETS))
    meters = MeterProvider(metric_readers=readers, resource=resource, views=[seconds], shutdown_on_exit=False)
    metrics.set_meter_provider(meters)

    def finish() -> None:
        for end in (*ends, meters.shutdown):
            end()

    return finish


def _otlp(endpoint: str, resource: Any) -> tuple[Any, Callable[[], None]]:
    """Send spans; return the reader that sends metrics, and what sends the last spans."""
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint)), provider.shutdown


def _prometheus(listen: str) -> Any:
    """Serve metrics over HTTP and return their reader."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    start_http_server(int(port), addr=host or "127.0.0.1")
    return PrometheusMetricReader()


def observe_lanes(lanes: Callable[[], Iterable[ObservedLane]]) -> None:
    """Offer the slots of every lane, how many are taken, how many calls wait, and how many were refused."""
    meter = metrics.get_meter("volgate")

    def observed(value: Callable[[ObservedLane], int]) -> list[Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]]:
        return [lambda _options: [metrics.Observation(value(lane), {"lane": lane.name}) for lane in lanes()]]

    meter.create_observable_gauge("volgate.lane.slots", observed(lambda lane: lane.width), description="Calls that may run at once")
    meter.create_observable_gauge("volgate.lane.running", observed(lambda lane: lane.running), description="Calls that run")
    meter.create_observable_gauge("volgate.lane.queued", observed(lambda lane: lane.queued), description="Calls that wait")
    meter.create_observable_counter("volgate.lane.refused", observed(lambda lane: lane.refused), description="Calls that were refused")


def observe_operations(unfinished: Callable[[], int], doubtful: Callable[[], int], oldest: Callable[[], float]) -> None:
    """Offer how many operations have not ended, how many of them are in doubt, and the age of the oldest, seconds."""
    meter = metrics.get_meter("volgate")

    def observed(value: Callable[[], float]) -> list[Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]]:
        return [lambda _options: [metrics.Observation(value())]]

    now = "Operations that run, wait or are in doubt"
    meter.create_observable_gauge("volgate.operation.unfinished", observed(unfinished), description=now)
    meter.create_observable_gauge("volgate.operation.doubtful", observed(doubtful), description="Operations in doubt")
    meter.create_observable_gauge("volgate.operation.oldest", observed(oldest), unit="s", description="Age of the oldest unfinished one")


def observe_hosts(known: Callable[[], int], dead: Callable[[], int]) -> None:
    """Offer how many hosts there are, and how many of them are dead and not released."""
    meter = metrics.get_meter("volgate")
    meter.create_observable_gauge("volgate.host.known", [partial(_counted, known)], description="Hosts")
    meter.create_observable_gauge("volgate.host.dead", [partial(_counted, dead)], description="Hosts without heartbeats")


def _counted(count: Callable[[], int], _options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    return [metrics.Observation(count())]


def observe_pools(pools: Callable[[], Iterable[ObservedPool]]) -> None:
    """Offer the health of every pool, its space where it told it, and its stuck workers."""
    meter = metrics.get_meter("volgate")
    rank = {Health.DOWN: 0, Health.DEGRADED: 1, Health.OK: 2}

    def observed(value: Callable[[ObservedPool], int]) -> list[Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]]:
        return [lambda _options: [metrics.Observation(value(pool), {"pool": pool.name}) for pool in pools()]]

    def told(value: Callable[[Capacity], int]) -> list[Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]]:
        return [
            lambda _options: [
                metrics.Observation(value(known), {"pool": pool.name}) for pool in pools() if (known := pool.known_capacity) is not None
            ]
        ]

    health = "2: ok, 1: degraded, 0: down"
    meter.create_observable_gauge("volgate.pool.health", observed(lambda pool: rank[pool.health]), description=health)
    meter.create_observable_gauge("volgate.pool.size", told(lambda space: space.total), unit="By", description="Space of the pool")
    meter.create_observable_gauge("volgate.pool.free", told(lambda space: space.free), unit="By", description="Space that is free")
    meter.create_observable_gauge(
        "volgate.pool.provisioned", told(lambda space: space.provisioned), unit="By", description="Sizes promised"
    )
    meter.create_observable_gauge(
        "volgate.pool.limit", told(lambda space: space.limit), unit="By", description="The most to promise; 0: any"
    )
    meter.create_observable_gauge("volgate.worker.stuck", observed(lambda pool: pool.stuck), description="Killed, but kept by the kernel")


def configure_logs(level: str) -> None:
    """Write JSON lines with trace ids and without secrets to the standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            _redact,
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


def _redact(_logger: Any, _name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take secrets out of texts; a traceback holds whatever foreign code put into its errors."""
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = redacted(value)
    return entry
