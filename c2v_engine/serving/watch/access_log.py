"""One line for each request after it ended and for each event, for people or for machines."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple, TextIO

from c2v_engine.errors import ConfigError, MissingPackageError
from c2v_engine.serving.contract import BatchReport
from c2v_engine.serving.watch.watched import QUIET_ROUTES, RequestRecord, is_quiet

try:
    import orjson
except ImportError as error:
    raise MissingPackageError("orjson", "serve") from error

LogFormat = Literal["text", "json"]

Level = Literal["info", "error"]

_CLIENT_LEFT = 499
_MOST_CHARACTERS = 200
_LINES_A_WRITE = 256
_WRITE_SECONDS = 0.02


class _Event(NamedTuple):
    """Something that is no request."""

    level: Level
    message: str


_Entry = tuple[float, RequestRecord | _Event]


class AccessLog:
    """Is told of every request and event, and writes them in a thread of its own.

    It never waits: where the stream does not take lines as fast as requests end, lines are left
    out, and a later line says how many. A stream that was closed stops nothing either. No line
    has a text, a key, or anything else of a request's body.

    Args:
        format: ``text`` for people or ``json``, one object a line, for machines.
        stream: to write to; None for standard error as it is now.
        quiet_routes: routes whose requests are not logged while they succeed, by default those of
            health, metrics and status; ``()`` for every request.
        capacity: most requests that wait to be written.

    Attributes:
        dropped: lines left out so far.

    Raises:
        ConfigError: another format.
    """

    def __init__(
        self,
        format: LogFormat = "text",
        stream: TextIO | None = None,
        *,
        quiet_routes: Collection[str] = QUIET_ROUTES,
        capacity: int = 10_000,
    ) -> None:
        if format not in _FORMATS:
            raise ConfigError(f"log format is {format!r}, expected {' or '.join(_FORMATS)}")
        self.dropped = 0
        self._line, self._gap, self._event_line = _FORMATS[format]
        self._quiet_routes = frozenset(quiet_routes)
        self._sink = _open(sys.stderr if stream is None else stream)
        self._capacity = capacity
        self._waiting: deque[_Entry] = deque()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._said = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def request(self, record: RequestRecord) -> None:
        """A request ended."""
        if not is_quiet(record, self._quiet_routes):
            self._put(record)

    def event(self, message: str, level: Level = "info") -> None:
        """Something happened that is no request, such as a start."""
        self._put(_Event(level, message))

    def batch(self, report: BatchReport) -> None:
        """A batch was computed: no line says so."""

    def failure(self, reason: str) -> None:
        """The model failed, or its numbers were not finite."""
        self.event(f"the model failed: {reason}", "error")

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most ``timeout`` seconds: a blocked stream stops no shutdown."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)

    def _write_all(self) -> None:
        ended = False
        while not ended:
            self._wake.wait()
            self._wake.clear()
            # Lines are written some together: to wake a thread for each would cost the event loop
            # more than all else that a request costs it here.
            ended = self._closing.wait(_WRITE_SECONDS)
            while self._waiting:
                count = min(len(self._waiting), _LINES_A_WRITE)
                self._write([self._waiting.popleft() for _ in range(count)])
        self._sink.close()

    def _put(self, entry: RequestRecord | _Event) -> None:
        if len(self._waiting) >= self._capacity:
            self._drop(1)
            return
        self._waiting.append((time.time(), entry))
        if not self._wake.is_set():
            self._wake.set()

    def _line_of(self, moment: float, entry: RequestRecord | _Event) -> bytes:
        if isinstance(entry, _Event):
            return self._event_line(moment, entry)
        return self._line(moment, entry)

    def _write(self, entries: list[_Entry]) -> None:
        dropped = self.dropped
        try:
            lines = [self._line_of(moment, entry) for moment, entry in entries]
            if dropped > self._said:
                lines.insert(0, self._gap(time.time(), dropped - self._said))
            if lines:
                self._sink.write(b"\n".join(lines) + b"\n")
        # Closed, by its other end or by this one, or a record that is none: the log goes on.
        except (OSError, ValueError, TypeError):
            self._drop(len(entries))
        else:
            self._said = dropped

    def _drop(self, lines: int) -> None:
        with self._lock:
            self.dropped += lines


def _json_line(moment: float, record: RequestRecord) -> bytes:
    timings = record.timings
    fields: dict[str, Any] = {
        "time": _utc(moment),
        "level": _level(record.status),
        "message": "request",
        "request_id": _plain(record.id),
        "method": _plain(record.method),
        "route": _plain(record.route),
        "status": record.status,
        "texts": record.texts,
        "tokens": record.tokens,
        "tokenize_ms": _milliseconds(timings.tokenize) if timings else None,
        "queue_ms": _milliseconds(timings.queue) if timings else None,
        "compute_ms": _milliseconds(timings.compute) if timings else None,
        "total_ms": _milliseconds(record.seconds),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "error": _plain(record.error) if record.error else None,
    }
    return orjson.dumps(fields)


def _json_gap(moment: float, lines: int) -> bytes:
    return orjson.dumps(
        {
            "time": _utc(moment),
            "level": "warning",
            "message": "lines of this log were dropped",
            "lines": lines,
        }
    )


def _text_line(moment: float, record: RequestRecord) -> bytes:
    parts = [
        f"{_utc(moment)} {_level(record.status):7} {record.status} "
        f"{_plain(record.method)} {_plain(record.route)}",
        f"{record.seconds * 1e3:.1f} ms",
    ]
    if timings := record.timings:
        stages = asdict(timings)
        told = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in stages.items())
        parts[-1] += f" ({told})"
    if record.texts:
        parts.append(f"{record.texts} text{'' if record.texts == 1 else 's'}")
    if record.tokens:
        parts.append(f"{record.tokens} token{'' if record.tokens == 1 else 's'}")
    parts.append(f"{record.bytes_in} B in, {record.bytes_out} B out")
    if record.error:
        parts.append(_plain(record.error))
    parts.append(f"id {_plain(record.id)}")
    return ", ".join(parts).encode()


def _text_gap(moment: float, lines: int) -> bytes:
    return f"{_utc(moment)} warning {lines} lines of this log were dropped".encode()


def _json_event(moment: float, event: _Event) -> bytes:
    fields = {"time": _utc(moment), "level": event.level, "message": event.message}
    return orjson.dumps(fields)


def _text_event(moment: float, event: _Event) -> bytes:
    return f"{_utc(moment)} {event.level:7} {' '.join(event.message.split())}".encode()


_Line = Callable[[float, RequestRecord], bytes]
_Gap = Callable[[float, int], bytes]
_FORMATS: dict[str, tuple[_Line, _Gap, Callable[[float, _Event], bytes]]] = {
    "text": (_text_line, _text_gap, _text_event),
    "json": (_json_line, _json_gap, _json_event),
}


def _level(status: int) -> str:
    if status >= 500:
        return "error"
    return "warning" if status >= 400 and status != _CLIENT_LEFT else "info"


def _utc(moment: float) -> str:
    text = datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _plain(text: str) -> str:
    """A short text without anything that breaks a line or an encoding."""
    text = text[:_MOST_CHARACTERS]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class _Sink:
    """Where lines go; this one is nowhere, as for a process without a standard error."""

    def write(self, lines: bytes) -> None:
        """Write all of it, however long that takes."""

    def close(self) -> None:
        """Nothing more is written."""


class _TextSink(_Sink):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, lines: bytes) -> None:
        self._stream.write(lines.decode())
        self._stream.flush()


class _DescriptorSink(_Sink):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, lines: bytes) -> None:
        left = memoryview(lines)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another process made the pipe non-blocking
                select.select([], [self._descriptor], [])

    def close(self) -> None:
        os.close(self._descriptor)


def _open(stream: TextIO | None) -> _Sink:
    """A stream of the system is written past Python's own, any other as it wants.

    A thread that is blocked in ``sys.stderr`` while the interpreter ends would abort it. The
    descriptor is a copy, for after a close its number may mean a client's connection.
    """
    if stream is None:
        return _Sink()
    try:
        return _DescriptorSink(os.dup(stream.fileno()))
    except (OSError, ValueError):  # it has none
        return _TextSink(stream)
