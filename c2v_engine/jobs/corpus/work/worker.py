"""A worker process of a corpus job: what is said to it, and what it does.

It opens a model, is told of the job, and then asks for units, the next one while it embeds the
last: its texts are one stream as long as there are units. What it has written stays under temporary
names; only the coordinator, which holds the folder's lock, moves it to its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from c2v_engine import errors
from c2v_engine.errors import C2VError
from c2v_engine.jobs.corpus.records import Unit
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.corpus.work.runner import Counters, UnitRunner
from c2v_engine.jobs.corpus.work.writing import Finished
from c2v_engine.jobs.encode import EncodeOptions, Encoder

REPORT_SECONDS = 0.5
# Errors that are made of more than a message.
_TOLD_AS: dict[type[C2VError], type[C2VError]] = {
    errors.TextError: errors.InputError,
    errors.MissingPackageError: errors.BackendError,
}
# The pipe ends with the parent, but for a forked copy of the parent that still holds it open.
_PARENT_CHECK_SECONDS = 5.0


class Opener(Protocol):
    """Opens the engine; ``c2v_engine.opener.EngineSpec``."""

    def open(self) -> Encoder:
        """Open it."""


class Setup(Protocol):
    """What a worker needs to know of the job; ``setup.JobSetup``."""

    def make_runner(self, engine: Encoder) -> UnitRunner:
        """Make what embeds its units."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    facts: EngineFacts


@dataclass(frozen=True)
class Want:
    """Asks for a unit.

    Attributes:
        idle: whether the worker has nothing to do and waits, however long it takes; otherwise it
            wants to know at once, and nothing now ends its stream.
    """

    idle: bool


@dataclass(frozen=True)
class NothingNow:
    """Answers a worker that is not idle: there is no unit for it at present."""


@dataclass(frozen=True)
class Done:
    """A unit is on disk."""

    finished: Finished
    counters: Counters


@dataclass(frozen=True)
class Working:
    """How far the worker is; said twice a second."""

    counters: Counters


class Failed(NamedTuple):
    """The worker can not go on.

    Attributes:
        kind: name of the error's class.
        message: of the error.
        trace: where it was raised.
    """

    kind: str
    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """What an error is told as."""
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(type(error).__name__, str(error), trace)

    def mistake(self) -> C2VError | None:
        """The error that says what is wrong with input, output or options; None for any other."""
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, C2VError):
            error: C2VError = _TOLD_AS.get(kind, kind)(self.message)
            return error
        return None


@dataclass(frozen=True)
class Ended:
    """A worker is gone; the reason is for people."""

    reason: str


Message = Ready | Want | Done | Working | Failed | Ended


class Conversation:
    """A worker's side of the talk with its coordinator, whatever carries it.

    Args:
        send: carries a message there.
        take: waits for the next answer: a unit, or that there is nothing now.
    """

    def __init__(
        self, send: Callable[[Message], None], take: Callable[[], Unit | NothingNow]
    ) -> None:
        self._send = send
        self._take = take

    def work(self, runner: UnitRunner) -> None:
        """Embed units for ever.

        Raises:
            C2VError: something is wrong with input or output.
        """
        over = threading.Event()
        teller = threading.Thread(target=self._tell, args=(runner, over), daemon=True)
        teller.start()
        try:
            while True:
                self._send(Want(idle=True))
                first = self._take()
                assert isinstance(first, Unit)
                for finished in runner.run(self._units(first)):
                    self._send(Done(finished, runner.counters()))
        finally:
            over.set()
            teller.join()

    def _units(self, first: Unit) -> Iterator[Unit]:
        """A unit, and the next ones as long as there are any at once."""
        unit: Unit | NothingNow = first
        while isinstance(unit, Unit):
            yield unit
            self._send(Want(idle=False))
            unit = self._take()

    def _tell(self, runner: UnitRunner, over: threading.Event) -> None:
        while not over.wait(REPORT_SECONDS):
            self._send(Working(runner.counters()))


def serve(
    connection: Connection[Any, Any], parent: int, spec: Opener, options: EncodeOptions
) -> None:
    """Open a model and embed units until the parent is gone: what a worker process runs.

    Args:
        connection: to the parent.
        parent: its process id.
        spec: of the engine.
        options: how texts are embedded.
    """
    # Ctrl-C goes to all processes of a terminal; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(parent)
    inbox: SimpleQueue[Any] = SimpleQueue()
    sending = threading.Lock()

    def send(message: Message) -> None:
        try:
            with sending:
                connection.send(message)
        except OSError:  # the parent is gone
            os._exit(0)

    threading.Thread(target=_receive, args=(connection, parent, inbox), daemon=True).start()
    try:
        engine = spec.open()
        send(Ready(EngineFacts.of(engine, options)))
        setup: Setup = inbox.get()
        Conversation(send, inbox.get).work(setup.make_runner(engine))
    except BaseException as error:
        send(Failed.of(error))
        sys.stderr.flush()
        os._exit(1)


def _receive(connection: Connection[Any, Any], parent: int, inbox: SimpleQueue[Any]) -> None:
    """Take what the parent says; the process ends with it, whatever else it is doing."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not connection.poll(_PARENT_CHECK_SECONDS):
                if os.getppid() != parent:
                    raise EOFError
            inbox.put(connection.recv())
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """Have the system end this process with its parent, even one that is killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before that
        os._exit(0)
