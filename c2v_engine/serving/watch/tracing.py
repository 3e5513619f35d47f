"""A trace of each request, by OpenTelemetry."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from c2v_engine._version import __version__
from c2v_engine.errors import ConfigError, MissingPackageError
from c2v_engine.serving.watch.watched import RequestRecord, is_quiet

try:
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingPackageError("opentelemetry-sdk", "otel") from error

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AttributeValue

_NAME = "c2v-engine"
_log = logging.getLogger(__name__)
_EXPORTERS = ("otlp", "console", "none")
_PROTOCOL = "http/protobuf"
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
_SECOND = 1_000_000_000  # nanoseconds


class Tracing:
    """Is told of every request, and makes a span of it, a child of its caller's where there is one.

    Under it stand the stages ``tokenize``, ``queue`` and ``compute`` as they came one after the
    other: before them its body was read, after them its answer written. Requests for health,
    metrics and the status have no span while they succeed.

    Args:
        provider: of OpenTelemetry's SDK; exports spans and decides which are kept.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_NAME, __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls) -> Tracing:
        """As the standard variables of OpenTelemetry say, ``OTEL_*``.

        Among them ``OTEL_EXPORTER_OTLP_ENDPOINT`` (and ``_HEADERS``, ``_TIMEOUT``, ...),
        ``OTEL_TRACES_EXPORTER`` (``otlp``, ``console`` or ``none``), ``OTEL_TRACES_SAMPLER``,
        ``OTEL_SERVICE_NAME`` (else ``c2v-engine``), ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_BSP_*``
        and ``OTEL_SDK_DISABLED``.

        Raises:
            ConfigError: an exporter or a protocol that there is not.
            MissingPackageError: the exporter is not installed.
        """
        exporter = _exporter(os.environ)
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def request(self, record: RequestRecord) -> None:
        """A request ended just now."""
        if is_quiet(record):
            return
        end = time.time_ns()
        start = end - int(record.seconds * _SECOND)
        parent = None
        if record.traceparent is not None:
            parent = self._propagator.extract({"traceparent": record.traceparent})
        method = record.method if record.method in _METHODS else "HTTP"
        span = self._tracer.start_span(
            method if record.route == "unmatched" else f"{method} {record.route}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_attributes(record),
            start_time=start,
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if record.timings is not None and span.is_recording():
            inside, at = set_span_in_context(span), start + int(record.asked * _SECOND)
            for stage in ("tokenize", "queue", "compute"):
                child = self._tracer.start_span(stage, context=inside, start_time=at)
                at += int(getattr(record.timings, stage) * _SECOND)
                child.end(at)
        span.end(end)

    def close(self, timeout: float = 5.0) -> None:
        """Export what is left, for at most ``timeout`` seconds: no collector stops a shutdown."""
        # The SDK has no such bound: it tries for 10 s a batch, and there may be several.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(timeout)
        if closing.is_alive():
            _log.warning("traces: the last spans were not taken in %g seconds", timeout)


def _attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    """By the semantic conventions of HTTP servers, and what only this server knows."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": record.method if record.method in _METHODS else "_OTHER",
        "http.response.status_code": record.status,
        "http.request.body.size": record.bytes_in,
        "http.response.body.size": record.bytes_out,
        "c2v.request_id": record.id,
    }
    if record.route != "unmatched":
        attributes["http.route"] = record.route
    if record.error is not None:
        attributes["error.type"] = record.error
    elif record.status >= 500:
        attributes["error.type"] = str(record.status)
    if record.texts:
        attributes["c2v.texts"] = record.texts
        attributes["c2v.tokens"] = record.tokens
    return attributes


def _exporter(environment: Mapping[str, str]) -> SpanExporter | None:
    name = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name not in _EXPORTERS:
        expected = ", ".join(_EXPORTERS[:-1])
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER is {name!r}, expected {expected} or {_EXPORTERS[-1]}"
        )
    if name == "none":
        return None
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stdout)
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environment.get(variable):
            if protocol != _PROTOCOL:
                raise ConfigError(f"{variable} is {protocol!r}, expected {_PROTOCOL}")
            break
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingPackageError("opentelemetry-exporter-otlp-proto-http", "otel") from error
    return OTLPSpanExporter()


def _resource() -> Resource:
    """The environment's, with our name where it says none."""
    resource = Resource.create({SERVICE_VERSION: __version__})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: _NAME}))
    return resource
