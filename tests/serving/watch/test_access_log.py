"""One line for each request."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import fields
from datetime import datetime, timezone

import pytest
from watching import Record

from c2v_engine.errors import ConfigError
from c2v_engine.serving.watch.access_log import AccessLog


def logged(*records: Record, format: str = "json", **options) -> list[str]:
    stream = io.StringIO()
    log = AccessLog(format, stream, **options)
    for record in records:
        log.request(record)
    log.close()
    assert stream.getvalue().endswith("\n") or not stream.getvalue()
    return stream.getvalue().splitlines()


def test_json_has_one_object_a_line():
    before = datetime.now(timezone.utc)
    lines = logged(Record(), Record(id="r-2", status=503, timings=None, error="unavailable"))
    first, second = map(json.loads, lines)
    told = datetime.fromisoformat(first.pop("time").replace("Z", "+00:00"))
    assert abs((told - before).total_seconds()) < 10
    assert first == {
        "level": "info",
        "message": "request",
        "request_id": "r-1",
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 200,
        "texts": 2,
        "tokens": 9,
        "tokenize_ms": 1.0,
        "queue_ms": 2.0,
        "compute_ms": 4.0,
        "total_ms": 10.0,
        "bytes_in": 50,
        "bytes_out": 700,
        "error": None,
    }
    assert (second["level"], second["error"], second["queue_ms"]) == ("error", "unavailable", None)


def test_text_is_a_line_for_people():
    done, left, refused = logged(
        Record(),
        Record(status=499, timings=None, texts=0, tokens=0),
        Record(status=422, timings=None, texts=1, tokens=1, error="invalid_text"),
        format="text",
    )
    _, _, rest = done.partition(" ")
    assert rest == (
        "info    200 POST /v1/embeddings, 10.0 ms (tokenize 1.0, queue 2.0, compute 4.0), "
        "2 texts, 9 tokens, 50 B in, 700 B out, id r-1"
    )
    assert " info    499 POST /v1/embeddings, 10.0 ms, 50 B in" in left
    assert " warning 422 " in refused
    assert ", 1 text, 1 token, 50 B in, 700 B out, invalid_text, id r-1" in refused


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("evil", ["a\nb", "a\r\x1b[31mb", "a\u2028b\x85c", "a\ud800b", 'a"}\n{"b'])
def test_nothing_breaks_a_line(format, evil):
    records = [Record(**{name: evil}) for name in ("id", "method", "route", "error")]
    lines = logged(*records, format=format)
    assert len(lines) == len(records)
    assert all(line.isprintable() for line in lines)
    if format == "json":
        assert all(json.loads(line)["status"] == 200 for line in lines)


def test_a_long_field_is_cut():
    (line,) = logged(Record(id="x" * 5000))
    assert len(json.loads(line)["request_id"]) == 200


def test_polls_are_left_out_while_they_succeed():
    polls = [Record(route="/health"), Record(route="/status"), Record(route="/metrics")]
    assert logged(*polls) == []
    assert len(logged(*polls, quiet_routes=())) == 3
    assert logged(Record(route="/health/ready", status=503, error="unavailable")) == []
    (failed,) = logged(Record(route="/health", status=503, error="unavailable"))
    assert json.loads(failed)["route"] == "/health"


def test_another_format_is_refused():
    with pytest.raises(ConfigError, match="log format is 'xml', expected text or json"):
        AccessLog("xml")


def test_a_record_has_nothing_to_log_of_a_body():
    assert {field.name for field in fields(Record)} == {
        *("id", "method", "route", "status", "texts", "tokens", "timings", "seconds", "asked"),
        *("bytes_in", "bytes_out", "error", "traceparent"),
    }


class BlockedStream(io.StringIO):
    """Takes nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(20)
        return super().write(text)


def test_a_blocked_stream_holds_nobody_and_what_was_left_out_is_said():
    stream = BlockedStream()
    log = AccessLog("json", stream, capacity=10)
    log.request(Record(id="first"))
    while log._waiting:
        time.sleep(0.001)
    begun = time.monotonic()
    for _ in range(1000):
        log.request(Record())
    log.close(timeout=0.1)
    assert time.monotonic() - begun < 5
    assert log.dropped == 990
    stream.free.set()
    log.close(timeout=20)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    gap = [line for line in lines if "lines" in line]
    assert [line["lines"] for line in gap] == [990]
    assert gap[0]["level"] == "warning"
    assert len(lines) == 1 + 1 + 10


def test_a_pipe_that_nobody_reads_holds_nobody():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        log = AccessLog("json", stream, capacity=10)
        begun = time.monotonic()
        for _ in range(2000):
            log.request(Record(id="x" * 200))
            time.sleep(0)
        log.close(timeout=0.2)
        assert time.monotonic() - begun < 5
        assert log.dropped > 0
        os.close(reader)


def test_a_stream_that_was_closed_stops_nothing():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        log = AccessLog("text", stream)
        os.close(reader)
        for _ in range(3):
            log.request(Record())
        log.close()
    assert log.dropped == 3
    stream = io.StringIO()
    log = AccessLog("text", stream)
    stream.close()
    log.request(Record())
    log.close()
    assert log.dropped == 1


def test_the_descriptor_of_a_closed_stream_is_not_written_to(tmp_path):
    """Its number may have become that of a client's connection."""
    with (tmp_path / "log").open("w") as stream:
        log = AccessLog("text", stream)
        number = stream.fileno()
    with (tmp_path / "other").open("w") as other:
        os.dup2(other.fileno(), number) if other.fileno() != number else None
        log.request(Record())
        log.close()
    assert (tmp_path / "other").read_text() == ""
    assert "id r-1" in (tmp_path / "log").read_text()


SCRIPT = """
from types import SimpleNamespace
from c2v_engine.serving.watch.access_log import AccessLog
log = AccessLog("text")
record = SimpleNamespace(
    id="x" * 100, method="POST", route="/embed", status=200, texts=1, tokens=1, timings=None,
    seconds=0.01, bytes_in=1, bytes_out=1, error=None,
)
for _ in range(3000):
    log.request(record)
log.close(timeout=0.3)
print("ended", flush=True)
"""


@pytest.mark.parametrize("stderr", ["none", "unread", "gone"])
def test_a_process_ends_well_whatever_its_standard_error_is(stderr):
    reader, writer = os.pipe()
    if stderr == "gone":
        os.close(reader)
    command = [sys.executable, "-c", SCRIPT]
    if stderr == "none":
        command = ["sh", "-c", 'exec "$0" "$@" 2>&-', *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"ended\n")
    os.close(writer)
    if stderr != "gone":
        os.close(reader)
