"""Worker processes on this machine, as a job's coordinator sees them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from c2v_engine.errors import BackendError
from c2v_engine.jobs.corpus.records import Unit
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.corpus.work.worker import (
    Ended,
    Failed,
    Message,
    NothingNow,
    Opener,
    Ready,
    Setup,
    serve,
)
from c2v_engine.jobs.encode import EncodeOptions

_END_SECONDS = 5.0


class Fleet(ABC):
    """Workers that are numbered, wherever they run.

    A worker's first message is ``Ready`` or ``Failed``, its last ``Ended``, which frees the number.
    """

    facts: EngineFacts | None = None

    def start(self) -> EngineFacts:
        """Start the workers and wait until all have opened their models.

        Returns:
            What the first one says; their engines are seen to be alike.

        Raises:
            C2VError: a model can not be opened, or the workers can not be started.
        """
        try:
            ready = set(self.take_facts(self.launch()))
            while len(ready) < len(self.workers):
                ready.update(self.take_facts(self.events(1.0)))
        except BaseException:
            self.close()
            raise
        assert self.facts is not None
        return self.facts

    @abstractmethod
    def launch(self) -> list[tuple[int, Message]]:
        """Start the workers; give what they have said by then.

        Raises:
            BackendError: they can not be started.
        """

    def take_facts(self, said: list[tuple[int, Message]]) -> list[int]:
        """See that workers which have started have the engine of the first one; say which did.

        Args:
            said: by workers that are starting.

        Raises:
            C2VError: one can not open its model, or opens another.
        """
        ready = []
        for worker, message in said:
            if isinstance(message, Failed):
                raise message.mistake() or BackendError(
                    f"{self.name(worker)}: {message.kind}: {message.message}"
                )
            if isinstance(message, Ended):
                raise BackendError(
                    f"{self.name(worker)} {message.reason} before its model was loaded"
                )
            assert isinstance(message, Ready)
            self.facts = self.facts or message.facts
            wrong = self.facts.difference(message.facts)
            if wrong is not None:
                raise BackendError(
                    f"{self.name(worker)}: its engine has {wrong} as the others: all workers must "
                    "have the same one; name the dtype, and leave the model as it is"
                )
            ready.append(worker)
        return ready

    @property
    @abstractmethod
    def workers(self) -> list[int]:
        """The numbers of those that have not ended."""

    @abstractmethod
    def events(self, seconds: float) -> list[tuple[int, Message]]:
        """Wait for messages, at most so long."""

    @abstractmethod
    def send(self, worker: int, message: Unit | NothingNow | Setup) -> None:
        """Tell a worker something; one that is gone is not an error here, ``Ended`` comes."""

    @abstractmethod
    def replace(self, worker: int) -> None:
        """Start a worker under a number that is free: another in the place of one that ended."""

    @abstractmethod
    def name(self, worker: int) -> str:
        """What a worker is called in messages to people."""

    @abstractmethod
    def close(self) -> None:
        """End all workers at once, whatever they are doing."""


@dataclass(eq=False)
class _Process:
    process: SpawnProcess
    connection: Connection[Any, Any]


class ProcessFleet(Fleet):
    """A process on this machine for each opener.

    Args:
        openers: of the engines, one for each worker.
        names: of the workers.
        options: how texts are embedded.
    """

    def __init__(
        self, openers: Sequence[Opener], names: Sequence[str], options: EncodeOptions
    ) -> None:
        self._openers = list(openers)
        self._names = list(names)
        self._options = options
        self._running: dict[int, _Process] = {}

    def launch(self) -> list[tuple[int, Message]]:
        """See the base class."""
        for worker in range(len(self._openers)):
            self.replace(worker)
        return []

    @property
    def workers(self) -> list[int]:
        """See the base class."""
        return list(self._running)

    def events(self, seconds: float) -> list[tuple[int, Message]]:
        """See the base class."""
        by_connection = {one.connection: number for number, one in self._running.items()}
        found: list[tuple[int, Message]] = []
        for connection in wait(list(by_connection), seconds):
            number = by_connection[connection]  # type: ignore[index]
            try:
                found.append((number, self._running[number].connection.recv()))
            except (EOFError, OSError):
                found.append((number, Ended(self._ended(number))))
        return found

    def send(self, worker: int, message: Unit | NothingNow | Setup) -> None:
        """See the base class."""
        if worker in self._running:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._running[worker].connection.send(message)

    def name(self, worker: int) -> str:
        """See the base class."""
        return self._names[worker]

    def close(self) -> None:
        """See the base class."""
        running, self._running = self._running, {}
        for one in running.values():
            one.process.kill()
            one.connection.close()
        for one in running.values():
            one.process.join(_END_SECONDS)

    def replace(self, worker: int) -> None:
        """See the base class."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve,
            args=(theirs, os.getpid(), self._openers[worker], self._options),
            name=f"c2v-{self._names[worker]}",
            daemon=True,
        )
        try:
            with _interrupts_blocked():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # so that the pipe ends when the worker does
        self._running[worker] = _Process(process, ours)

    def _ended(self, worker: int) -> str:
        one = self._running.pop(worker)
        one.connection.close()
        one.process.join(_END_SECONDS)
        code = one.process.exitcode
        if code is None:
            one.process.kill()
            return "closed its pipe and was killed"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside do not take Ctrl-C, from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
