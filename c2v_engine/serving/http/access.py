"""What is known of each request once it is answered, and the ids by which it is found again."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from c2v_engine.serving.contract import Timings
from c2v_engine.serving.refusals import UnavailableError

UNMATCHED = "unmatched"
CLIENT_LEFT = 499
_NOTES = "c2v_notes"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_log = logging.getLogger("c2v_engine.serving.http")


@dataclass(frozen=True)
class RequestRecord:
    """A request that has been answered.

    Attributes:
        id: of the request, as its answer says it.
        method: of HTTP.
        route: its path with the names of what varies in it, ``unmatched`` where there is none.
        status: of the answer; 499 where the client left before it.
        texts: that were embedded or tokenised.
        tokens: likewise.
        timings: of the embedding.
        asked: seconds from its head's arrival until embeddings were asked for; 0 where none were.
        seconds: from its head's arrival until the last of the answer was handed over.
        bytes_in: of its body, as far as it was read.
        bytes_out: of the answer's body.
        error: code of the problem it ended with.
        traceparent: its header of that name.
    """

    id: str
    method: str
    route: str
    status: int
    texts: int
    tokens: int
    timings: Timings | None
    asked: float
    seconds: float
    bytes_in: int
    bytes_out: int
    error: str | None
    traceparent: str | None


class RequestListener(Protocol):
    """Is told of every request after its answer, in the event loop: must be quick."""

    def request(self, record: RequestRecord) -> None:
        """A request was answered, or its client left."""


@dataclass
class RequestNotes:
    """What routes write down of a request while they answer it."""

    texts: int = 0
    tokens: int = 0
    timings: Timings | None = None
    asked: float | None = None  # by the clock of time.perf_counter
    error: str | None = None


def notes_of(scope: Scope) -> RequestNotes:
    """The notes of the request whose scope it is."""
    notes: RequestNotes = scope.setdefault(_NOTES, RequestNotes())
    return notes


class AccessMiddleware:
    """The outermost layer: gives a request its id, answers what nobody foresaw, tells listeners.

    Args:
        app: the layer below.
        listeners: are told of every request; one that raises is logged and the rest still told.
        failure: answer to an exception that nothing below has answered, and its code.
    """

    def __init__(
        self,
        app: ASGIApp,
        listeners: Sequence[RequestListener],
        failure: Callable[[Exception, str], tuple[Response, str]],
    ) -> None:
        self.app = app
        self.listeners = tuple(listeners)
        self.failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        exchange = _Exchange(receive, send, request_id(headers.get("x-request-id")))
        notes = notes_of(scope)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            # By a server that stops for good: its clients are to ask another.
            if exchange.status:
                raise
            response, notes.error = self.failure(
                UnavailableError("the server is shutting down"), scope["path"]
            )
            await response(scope, exchange.receive, exchange.send)
        except Exception as error:
            _log.exception("request %s failed", exchange.id)
            response, notes.error = self.failure(error, scope["path"])
            if exchange.status:
                raise  # too late to say it otherwise: the server cuts the connection
            await response(scope, exchange.receive, exchange.send)
        finally:
            # Also where the task is cancelled, as a server does that stops for good.
            record = RequestRecord(
                id=exchange.id,
                method=scope["method"],
                route=_route_of(scope),
                status=exchange.status or CLIENT_LEFT,
                texts=notes.texts,
                tokens=notes.tokens,
                timings=notes.timings,
                asked=0.0 if notes.asked is None else notes.asked - began,
                seconds=time.perf_counter() - began,
                bytes_in=exchange.bytes_in,
                bytes_out=exchange.bytes_out,
                error=notes.error,
                traceparent=headers.get("traceparent"),
            )
            self._tell(record)

    def _tell(self, record: RequestRecord) -> None:
        for listener in self.listeners:
            try:
                listener.request(record)
            except Exception:
                _log.exception("%s failed on request %s", type(listener).__name__, record.id)


class _Exchange:
    """One request's way in and out, counted."""

    def __init__(self, receive: Receive, send: Send, id: str) -> None:
        self._receive = receive
        self._send = send
        self.id = id
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            named = (b"x-request-id", self.id.encode("ascii"))
            message = {**message, "headers": [*message.get("headers", ()), named]}
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)


def _route_of(scope: Scope) -> str:
    route = scope.get("route")
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return UNMATCHED if path is None else str(path)


def request_id(given: str | None) -> str:
    """A request's id: the one it came with, where that is short visible ASCII, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()
