"""``c2v serve``: the port, the model, the app, and an end at which nothing accepted is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from c2v_engine.errors import InputError, MissingPackageError
from c2v_engine.serving.connections import Connection
from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.service import EmbeddingService, ServiceOptions
from c2v_engine.serving.watch.access_log import AccessLog, LogFormat
from c2v_engine.serving.watch.metrics import Metrics
from c2v_engine.serving.watch.status import watch_router

try:
    import uvicorn
except ImportError as error:
    raise MissingPackageError("uvicorn", "serve") from error

if TYPE_CHECKING:
    from fastapi import FastAPI

    from c2v_engine.opener import EngineSpec
    from c2v_engine.serving.http.access import RequestListener

KEYS_VARIABLE = "C2V_API_KEYS"
# Seconds in which connections that are in use are told to close, before idle ones are closed.
_LINGER = 0.5
# Longer than what proxies keep idle connections for, mostly a minute, so that they close first.
_KEEP_ALIVE = 75
# Beside tensor operations that run for long, a thread that wants the interpreter waits no more.
_SWITCH_SECONDS = 0.001
# Seconds between looks at whether the warm-up ended, or a second signal came.
_TICK = 0.05
_ANSWERED = "ended: all that was accepted is answered"
_NOT_ANSWERED = "ended: some of what was accepted is not answered"


@dataclass(frozen=True)
class ServerOptions:
    """Where it listens and what it writes.

    Attributes:
        host: address to listen on.
        port: likewise; 0 for any that is free.
        grace: seconds in which what was accepted is finished after a signal to end.
        log_format: of the lines about requests; None for none.
        tracing: whether requests are traced by OpenTelemetry.
        names: by which clients may ask for the model; none for the model's own.
        service: how requests are taken.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grace: float = 30.0
    log_format: LogFormat | None = "text"
    tracing: bool = False
    names: tuple[str, ...] = ()
    service: ServiceOptions = field(default_factory=ServiceOptions)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """API keys: of a file, one a line, and of the environment, separated by commas.

    Args:
        file: with empty lines and lines that begin with ``#`` left out; None for none.

    Raises:
        InputError: there is no key in what should have some: the server would be open to all.
    """
    given = os.environ.get(KEYS_VARIABLE, "")
    keys = [key for part in given.split(",") if (key := part.strip())]
    if given and not keys:
        raise InputError(f"{KEYS_VARIABLE}: there is no API key in it; unset it to need none")
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise InputError(f"{file}: the API keys are not UTF-8 text") from None
        in_file = [line for line in lines if line and not line.startswith("#")]
        if not in_file:
            raise InputError(f"{file}: there is no API key in it")
        keys += in_file
    return tuple(dict.fromkeys(keys))


def serve(engine: EngineSpec, http: dict[str, object], options: ServerOptions) -> int:
    """Listen, load, warm up, serve until a signal comes, and finish what was accepted.

    Args:
        engine: what to serve.
        http: options of ``HttpOptions`` but for the model's names.
        options: of the server.

    Returns:
        The exit code: 0 after a signal to end, 1 where some of what was accepted was not done.

    Raises:
        C2VError: an option or a model that can not be.
        OSError: the address can not be listened on.
    """
    with contextlib.closing(_bind(options.host, options.port)) as listener, _ended_by_sigterm():
        sys.setswitchinterval(_SWITCH_SECONDS)
        model = engine.open()
        service = EmbeddingService(model, options.service)
        names = options.names or (Path(service.name).name,)
        http_options = HttpOptions(model_names=names, **http)  # type: ignore[arg-type]
        with _listeners(service, options) as (metrics, log, listeners):
            watching = watch_router(
                service, metrics, model=names[0], needs_key=bool(http_options.api_keys)
            )
            app = create_app(service, http_options, listeners=listeners, routers=[watching])
            server = _Server(app, options, service, log)
            port = listener.getsockname()[1]
            host = f"[{options.host}]" if ":" in options.host else options.host
            server.say(f"{names[0]} at http://{host}:{port}, warming up")
            try:
                server.run(sockets=[listener])
            finally:
                service.close()
                gc.unfreeze()  # else extensions tell of leaks when the interpreter ends
            if server.failure is None:
                server.say(_ANSWERED if server.whole else _NOT_ANSWERED)
    if server.failure is not None:
        raise server.failure
    return 0 if server.whole else 1


def _bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet: while the model is loaded, none connects."""
    if not host:  # which would be every address there is
        raise InputError("host is '', expected an address, such as 127.0.0.1 or 0.0.0.0")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return listener


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """While uvicorn does not listen to signals: as a container's first process, it has no other."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _listeners(
    service: EmbeddingService, options: ServerOptions
) -> Iterator[tuple[Metrics, AccessLog | None, Sequence[RequestListener]]]:
    metrics = Metrics(service)
    service.add_observer(metrics)
    listeners: list[RequestListener] = [metrics]
    log = None
    with contextlib.ExitStack() as stack:
        if options.log_format is not None:
            log = AccessLog(options.log_format)
            stack.callback(log.close)
            service.add_observer(log)
            listeners.append(log)
        if options.tracing:
            from c2v_engine.serving.watch.tracing import Tracing

            tracing = Tracing.from_environment()
            stack.callback(tracing.close)
            listeners.append(tracing)
        yield metrics, log, listeners


class _Server(uvicorn.Server):
    """Warms up when it listens, and ends in two steps.

    Connections in use are told to close first; then idle ones are closed.

    Args:
        app: to serve.
        options: of the server.
        service: behind the app.
        log: is told when the server begins and ends.

    Attributes:
        whole: whether all that was accepted is answered.
        failure: why the model could not be warmed up.
    """

    def __init__(
        self,
        app: FastAPI,
        options: ServerOptions,
        service: EmbeddingService,
        log: AccessLog | None,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Connection,
            # Nothing is done with a client's address, so none is taken from a proxy's headers.
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(options.grace)),
        )
        super().__init__(config)
        self.whole = True
        self.failure: Exception | None = None
        self._service = service
        self._grace = options.grace
        self._log = log
        self._warming = threading.Thread(target=self._warm_up, name="c2v-warm-up", daemon=True)

    def say(self, line: str) -> None:
        """Tell the operator."""
        if self._log is not None:
            self._log.event(f"c2v serve: {line}")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then warm up while the port says so."""
        await super().startup(sockets)
        self._warming.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish what was accepted, and close."""
        self._service.drain()
        for server in self.servers:
            server.close()
        # Every answer from now on says that it is the last of its connection, so that a client
        # that is about to send another request opens a new one, which is refused.
        self.server_state.default_headers = [
            *self.server_state.default_headers,
            (b"connection", b"close"),
        ]
        await asyncio.sleep(_LINGER)
        await super().shutdown(sockets)
        # Not waited for in a thread: the loop would not end before that.
        end = time.monotonic() + self._grace
        while self._warming.is_alive() and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(_TICK)

    async def _wait_tasks_to_complete(self) -> None:
        self.whole = False  # cancelled where it takes too long, and so are the requests
        await super()._wait_tasks_to_complete()
        # A connection that is still there has an answer that its client has not taken yet.
        self.whole = not self.server_state.tasks and not self.server_state.connections

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but the signal is not raised again when all is done: this is a good end."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # the terminal is gone; nohup has it ignored
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks to end, the second to end at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    def _warm_up(self) -> None:
        try:
            self._service.warm_up()
        except Exception as error:
            self.failure = error
            self.should_exit = True
        else:
            # What is there now stays: a full collection that walks through all of torch and the
            # model would stop every thread for a tenth of a second, again and again.
            gc.collect()
            gc.freeze()
            self.say("ready")
