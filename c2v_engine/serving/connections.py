"""Connections as uvicorn serves them, with bounds on what no route ever sees: requests' heads."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from c2v_engine.errors import MissingPackageError

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
except ImportError as error:
    raise MissingPackageError("uvicorn", "serve") from error

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# Most bytes of a head, of trailers, and of what else stands between two parts of a body.
HEAD_BYTES = 64 * 2**10
# Seconds from a connection's first byte, or its opening, until it has a whole head.
HEAD_SECONDS = 60.0


class Connection(HttpToolsProtocol):
    """One connection.

    - A head that is too long, or does not come, ends it: neither keeps memory or a connection.
    - Requests to go on by another protocol are passed over, as RFC 9110 has it, and answered by
      this one. The parser would take their bodies for the other protocol's; Java's client sends
      ``Upgrade: h2c`` with all of them.
    - A client that leaves is seen by the request that is being answered, also where it sent more.
    - Trailers are no headers: what a proxy checked is all there is.
    """

    head_seconds = HEAD_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0  # since the message began, or the last part of its body came
        self._in_head = False
        self._running: RequestResponseCycle | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It begins, and so does the time for its first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_waiting()
        if self._running is not None:
            # Not the last one, where more was sent before its answer.
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        answering = self._answering
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, silent=answering)

    def on_message_begin(self) -> None:
        """The first byte of a head came."""
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = True
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body came."""
        self._head_bytes = 0
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _should_upgrade(self) -> bool:
        # Keeps the request from being taken while the parser is about to leave out its body.
        return True

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("no tunnels here") from None
            head = [b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
            head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(b"".join(head) + b"\r\n" + data[upgrade.args[0] :])

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_waiting(self) -> None:
        if self._answering:
            self._await_head()  # the one before it is being answered
        elif self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, *, silent: bool = False) -> None:
        if not silent:  # another request would take it for its answer
            line = b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode("ascii"))
            self.transport.write(line + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
