"""A trace of each request."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from watching import Record

from c2v_engine._version import __version__
from c2v_engine.errors import ConfigError
from c2v_engine.serving.watch.tracing import Tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("TRACES_EXPORTER", "EXPORTER_OTLP_PROTOCOL", "SERVICE_NAME", "SDK_DISABLED"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)


def spans_of(exporter: InMemorySpanExporter) -> dict:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_span_with_its_stages_at_their_times(tracing, exporter):
    before = time.time_ns()
    tracing.request(Record())
    spans = spans_of(exporter)
    request = spans["POST /v1/embeddings"]
    assert request.kind is SpanKind.SERVER
    assert request.parent is None
    assert request.end_time - request.start_time == 10_000_000
    assert before <= request.end_time <= time.time_ns()
    at = request.start_time + 1_000_000
    for stage, milliseconds in (("tokenize", 1), ("queue", 2), ("compute", 4)):
        assert spans[stage].parent.span_id == request.context.span_id
        assert spans[stage].start_time == at
        at += milliseconds * 1_000_000
        assert spans[stage].end_time == at


def test_attributes_follow_the_conventions_of_http(tracing, exporter):
    tracing.request(Record())
    assert dict(spans_of(exporter)["POST /v1/embeddings"].attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/embeddings",
        "http.request.body.size": 50,
        "http.response.body.size": 700,
        "c2v.request_id": "r-1",
        "c2v.texts": 2,
        "c2v.tokens": 9,
    }


def test_the_caller_is_the_parent(tracing, exporter):
    tracing.request(Record(traceparent=f"00-{TRACE}-{SPAN}-01"))
    request = spans_of(exporter)["POST /v1/embeddings"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == SPAN
    assert f"{spans_of(exporter)['queue'].context.trace_id:032x}" == TRACE


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"]
)
def test_a_broken_header_begins_a_new_trace(tracing, exporter, header):
    tracing.request(Record(traceparent=header))
    assert spans_of(exporter)["POST /v1/embeddings"].parent is None


def test_a_caller_that_samples_nothing_is_followed(tracing, exporter):
    tracing.request(Record(traceparent=f"00-{TRACE}-{SPAN}-00"))
    assert spans_of(exporter) == {}


@pytest.mark.parametrize(
    ("status", "error", "code", "kind"),
    [
        (500, "compute_failed", StatusCode.ERROR, "compute_failed"),
        (503, None, StatusCode.ERROR, "503"),
        (429, "overloaded", StatusCode.UNSET, "overloaded"),
        (499, None, StatusCode.UNSET, None),
    ],
)
def test_only_faults_of_the_server_are_errors(tracing, exporter, status, error, code, kind):
    tracing.request(Record(status=status, error=error, timings=None))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is code
    assert span.attributes.get("error.type") == kind


def test_what_a_client_made_up_names_no_span(tracing, exporter):
    tracing.request(Record(route="unmatched", method="x" * 99, status=404, timings=None))
    (span,) = exporter.get_finished_spans()
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert "http.route" not in span.attributes


def test_polls_have_no_span_while_they_succeed(tracing, exporter):
    tracing.request(Record(route="/health"))
    assert spans_of(exporter) == {}
    tracing.request(Record(route="/health", status=503))
    assert list(spans_of(exporter)) == ["tokenize", "queue", "compute", "POST /health"]


def test_a_span_that_is_not_kept_has_no_stages(exporter):
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider).request(Record())
    assert spans_of(exporter) == {}


def test_spans_are_exported_at_the_end(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    tracing = Tracing.from_environment()
    tracing.request(Record())
    tracing.close()
    said = capsys.readouterr().out
    assert '"name": "POST /v1/embeddings"' in said
    assert '"service.name": "c2v-engine"' in said
    assert f'"service.version": "{__version__}"' in said


def test_spans_are_sent_to_the_collector_that_the_environment_names(monkeypatch):
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        tracing = Tracing.from_environment()
        tracing.request(Record())
        tracing.close()
        server.shutdown()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"POST /v1/embeddings" in body


def test_a_collector_that_is_not_there_stops_no_shutdown(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = Tracing.from_environment()
    tracing.request(Record())
    begun = time.monotonic()
    tracing.close(timeout=0.2)
    assert time.monotonic() - begun < 5
    assert "the last spans were not taken in 0.2 seconds" in caplog.text


def test_the_environment_names_the_service(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
    tracing = Tracing.from_environment()
    tracing.request(Record())
    tracing.close()
    assert '"service.name": "search"' in capsys.readouterr().out


def test_it_can_be_turned_off_by_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing.from_environment()
    tracing.request(Record(traceparent=f"00-{TRACE}-{SPAN}-01"))
    tracing.close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "is 'zipkin', expected otlp, console or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "is 'grpc', expected http/protobuf"),
    ],
)
def test_an_exporter_that_there_is_not_is_refused(monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name} {expected}$"):
        Tracing.from_environment()
