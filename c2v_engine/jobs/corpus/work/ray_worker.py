"""A worker of a corpus job as a Ray actor: asked for what it has to say, told what it is to do."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from c2v_engine._version import __version__
from c2v_engine.errors import BackendError
from c2v_engine.jobs.corpus.records import Unit
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.corpus.work.worker import (
    Conversation,
    Failed,
    Message,
    NothingNow,
    Opener,
    Ready,
    Setup,
)
from c2v_engine.jobs.encode import EncodeOptions

# So long a call waits for something to be said; no call waits for ever, whatever is lost.
_POLL_SECONDS = 10.0


class Place(NamedTuple):
    """Where a worker runs; what it says first, before it loads anything.

    Attributes:
        host: name of the machine.
        pid: of the process.
        release: of this package there.
    """

    host: str
    pid: int
    release: str


class RayWorker:
    """Opens a model and embeds units in a thread, while two calls at a time talk with it.

    Args:
        opener: of the engine.
        options: how texts are embedded.
        folder: the coordinator's working folder, from which the job's paths start.
    """

    def __init__(self, opener: Opener, options: EncodeOptions, folder: str) -> None:
        self._opener = opener
        self._options = options
        self._folder = folder
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Message | Place] = SimpleQueue()
        self._outbox.put(Place(socket.gethostname(), os.getpid(), __version__))
        threading.Thread(target=self._serve, name="c2v-serve", daemon=True).start()

    def tell(self, message: Setup | Unit | NothingNow) -> None:
        """Take what the coordinator says."""
        self._inbox.put(message)

    def poll(self) -> list[Message | Place]:
        """Wait a while for messages to the coordinator; give all there are."""
        found: list[Message | Place] = []
        with contextlib.suppress(Empty):
            found.append(self._outbox.get(timeout=_POLL_SECONDS))
            while True:
                found.append(self._outbox.get_nowait())
        return found

    def _serve(self) -> None:
        try:
            self._enter_folder()
            engine = self._opener.open()
            self._outbox.put(Ready(EngineFacts.of(engine, self._options)))
            setup: Setup = self._inbox.get()
            Conversation(self._outbox.put, self._inbox.get).work(setup.make_runner(engine))
        except BaseException as error:
            self._outbox.put(Failed.of(error))

    def _enter_folder(self) -> None:
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise BackendError(
                f"{self._folder}: can not be entered on {socket.gethostname()} ({error.strerror}): "
                "a job on a cluster starts in a folder that all machines share, where its output is"
            ) from error
