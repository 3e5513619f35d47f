"""Metrics of a server, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from c2v_engine._version import __version__
from c2v_engine.errors import MissingPackageError
from c2v_engine.serving.contract import BatchReport, State
from c2v_engine.serving.watch.recent import Recent
from c2v_engine.serving.watch.watched import RequestRecord, WatchedService, is_quiet

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
        Metric,
        StateSetMetricFamily,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingPackageError("prometheus-client", "serve") from error

# From a short text on a GPU to a request that times out.
_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)
_FILL = (0.01, 0.05, *(tenth / 10 for tenth in range(1, 11)))
_TEXTS = tuple(float(2**power) for power in range(13))
# Routes and errors are the server's own words; should they not be, the series stay this few.
_MOST_SERIES = 200
_OTHER = "other"


class Metrics:
    """Counts what a server does: an ``Observer`` of its service, and told of every request.

    Two in one process are apart: each has its own registry. Labels are routes' templates, status
    codes and types of errors, never what a client wrote.

    Args:
        service: what it reads when it is asked for the metrics.

    Attributes:
        registry: of ``prometheus_client``; others may add to it.
        recent: the last two minutes.
    """

    def __init__(self, service: WatchedService) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.recent = Recent()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._requests = counter(
            "c2v_requests", "Requests that ended, by route and status.", ["route", "status"]
        )
        self._errors = counter("c2v_errors", "Requests that ended with an error.", ["type"])
        self._failures = counter("c2v_model_failures", "Times that the model failed.")
        self._bytes = counter("c2v_bytes", "Bytes of bodies, in or out.", ["direction"])
        self._stages = histogram(
            "c2v_stage_seconds",
            "Stages of requests that were answered with embeddings.",
            ["stage"],
            buckets=_SECONDS,
        )
        self._batch_fill = histogram(
            "c2v_batch_fill_ratio", "Tokens of a batch, of its budget.", buckets=_FILL
        )
        self._batch_texts = histogram("c2v_batch_texts", "Texts of a batch.", buckets=_TEXTS)
        self._batch_seconds = histogram(
            "c2v_batch_seconds", "From a batch's launch to its embeddings.", buckets=_SECONDS
        )
        # ``labels`` costs more than counting does, so its answers are kept.
        self._by_request: dict[tuple[str, int], Counter] = {}
        self._by_error: dict[str, Counter] = {}
        self._in, self._out = (self._bytes.labels(way) for way in ("in", "out"))
        self._tokenize, self._queue, self._compute, self._rest, self._total = (
            self._stages.labels(stage)
            for stage in ("tokenize", "queue", "compute", "other", "total")
        )
        self.registry.register(_ServiceCollector(service))
        ProcessCollector(registry=self.registry)

    def batch(self, report: BatchReport) -> None:
        """A batch was computed."""
        self._batch_fill.observe(report.tokens / report.budget)
        self._batch_texts.observe(report.texts)
        self._batch_seconds.observe(report.seconds)
        self.recent.add_batch(report.texts, report.tokens, report.seconds)

    def failure(self, reason: str) -> None:
        """The model failed; why is in the service's snapshot, for reasons are no label."""
        self._failures.inc()

    def request(self, record: RequestRecord) -> None:
        """A request ended."""
        key = record.route, record.status
        counted = self._by_request.get(key)
        if counted is None:
            counted = self._series(key)
        counted.inc()
        self._in.inc(record.bytes_in)
        self._out.inc(record.bytes_out)
        if record.error is not None and not is_quiet(record):
            self._error(record.error).inc()
        timings = record.timings
        if timings is None:
            return
        self._tokenize.observe(timings.tokenize)
        self._queue.observe(timings.queue)
        self._compute.observe(timings.compute)
        inside = timings.tokenize + timings.queue + timings.compute
        self._rest.observe(max(record.seconds - inside, 0.0))
        self._total.observe(record.seconds)
        self.recent.add_request(record.seconds)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics at this moment.

        Args:
            accept: the header of that name, which chooses between the text format of Prometheus
                and OpenMetrics.

        Returns:
            The body and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _series(self, key: tuple[str, int]) -> Counter:
        if len(self._by_request) >= _MOST_SERIES:
            key = _OTHER, key[1] // 100 * 100
        if key not in self._by_request:
            route, status = key
            self._by_request[key] = self._requests.labels(route, str(status))
        return self._by_request[key]

    def _error(self, name: str) -> Counter:
        if name not in self._by_error:
            name = name if len(self._by_error) < _MOST_SERIES else _OTHER
            self._by_error[name] = self._errors.labels(name)
        return self._by_error[name]


class _ServiceCollector(Collector):
    """The service's own numbers, read when they are asked for."""

    def __init__(self, service: WatchedService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        now, info = self._service.snapshot(), self._service.info
        build = {
            "version": __version__,
            "model": self._service.name,
            "device": str(info.get("device", "")),
            "dtype": str(info.get("dtype", "")),
        }
        yield InfoMetricFamily("c2v_build", "What is served, and by what.", value=build)
        states = {state.value: now.state is state for state in State}
        yield StateSetMetricFamily("c2v_state", "The service's state.", states)
        counters = {
            "c2v_texts": ("Texts embedded.", now.texts),
            "c2v_tokens": ("Tokens of those texts.", now.tokens),
            "c2v_batches": ("Batches computed.", now.batches),
        }
        for name, (help_text, value) in counters.items():
            yield CounterMetricFamily(name, help_text, value=value)
        gauges: dict[str, tuple[str, float | None]] = {
            "c2v_up": ("1 while requests are taken.", now.state is State.READY),
            "c2v_queue_tokens": ("Tokens that wait.", now.queue_tokens),
            "c2v_queue_capacity_tokens": ("Most tokens that may wait.", now.queue_capacity),
            "c2v_queue_texts": ("Texts that wait.", now.queued_texts),
            "c2v_requests_active": ("Requests in the service.", now.requests),
            "c2v_batch_budget_tokens": ("Most tokens of a batch.", now.batch_tokens),
            "c2v_device_tokens_per_second": (
                "Tokens a second while the device computes, lately.",
                now.tokens_per_second,
            ),
        }
        for name, (help_text, gauge) in gauges.items():
            if gauge is not None:
                yield GaugeMetricFamily(name, help_text, value=gauge)
