"""A worker process of several that embed together: what is said to it, and what it does.

Three threads: one receives, so that a unit that waits can be asked back while another is computed
and so that the end of the parent is noticed at once; one computes; one sends. The one that receives
never sends, so that neither side can wait for the other to read.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch

from c2v_engine import errors
from c2v_engine.errors import C2VError, TextError
from c2v_engine.model.device import resolve_device
from c2v_engine.model.loading import Placement
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.opening import PipelineOptions, open_pipeline
from c2v_engine.runtime.runner import Runner
from c2v_engine.runtime.stats import EncodeStats

# The pipe ends with the parent, but for a forked copy of the parent that still holds it open.
_PARENT_CHECK_SECONDS = 5.0


class Opened(NamedTuple):
    """A model that a worker has loaded.

    Attributes:
        runner: embeds texts with it.
        placement: where and how it computes.
        batch_tokens: decoder rows of a full batch.
    """

    runner: Runner
    placement: Placement
    batch_tokens: int


Opener = Callable[[Path, PipelineOptions], Opened]
"""Loads the model in the worker; a function of a module, so that it can be named to a process."""


class Job(NamedTuple):
    """Texts to embed.

    Attributes:
        number: of the unit, in what comes back.
        texts: distinct ones.
        prompt: of all of them.
        batch_tokens: most rows of a batch, None for as many as suit the device.
        output: the format, its ranges left out.
        ranges: of the format.
    """

    number: int
    texts: list[str]
    prompt: str
    batch_tokens: int | None
    output: OutputFormat
    ranges: np.ndarray | None


class Recall(NamedTuple):
    """Asks for a unit back, if it has not been started; answered by ``Recalled``."""

    number: int


class Recalled(NamedTuple):
    """Whether a unit is given back; if not, its result comes or has come."""

    number: int
    given: bool


class Ready(NamedTuple):
    """The model is loaded; the fields are those of ``Opened``, and what ``Runner.info`` says."""

    info: dict[str, str]
    placement: Placement
    batch_tokens: int


class Done(NamedTuple):
    """A unit was embedded; the bytes of its embeddings follow as the next message."""

    number: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stats: EncodeStats


class Failed(NamedTuple):
    """A unit was not embedded, or the model not loaded (number -1).

    Attributes:
        number: of the unit.
        kind: name of the error's class.
        message: of the error; of a ``TextError`` its reason.
        row: of the unit's texts, for a ``TextError``.
        trace: where it was raised.
    """

    number: int
    kind: str
    message: str
    row: int | None
    trace: str

    @classmethod
    def of(cls, number: int, error: Exception) -> Failed:
        """What an error is told as."""
        row, message = None, str(error)
        if isinstance(error, TextError):
            row, message = error.row, error.reason
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(number, type(error).__name__, message, row, trace)

    def error(self, device: str) -> Exception:
        """The error for the caller: ours as the same kind, any other a ``RuntimeError``."""
        if self.row is not None:
            return TextError(self.row, self.message)
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, C2VError):
            return kind(f"{device}: {self.message}")
        error = RuntimeError(f"{device}: {self.kind}: {self.message}")
        error.__cause__ = RuntimeError(f"in the worker process on {device}:\n{self.trace}")
        return error


def open_worker(directory: Path, options: PipelineOptions) -> Opened:
    """The ``Opener`` of a checkpoint."""
    device = resolve_device(options.load.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or it would have a context on the first one too
    pipeline = open_pipeline(directory, options)
    checkpoint = pipeline.checkpoint
    return Opened(pipeline, checkpoint.placement, pipeline.batch_tokens)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor of any dtype, on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def serve(
    connection: Connection[Any, Any],
    parent: int,
    directory: Path,
    options: PipelineOptions,
    opener: Opener,
    threads: int | None,
) -> None:
    """Load a model and embed units until the parent is gone: what a worker process runs.

    Args:
        connection: to the parent.
        parent: its process id.
        directory: of the checkpoint.
        options: how it is opened.
        opener: opens it.
        threads: of torch, None as it is.
    """
    # Ctrl-C goes to all processes of a terminal; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox: SimpleQueue[tuple[Any, torch.Tensor | None]] = SimpleQueue()
    inbox = _Inbox(connection, parent, outbox)
    threading.Thread(target=inbox.receive, name="c2v-receive", daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        opened = opener(directory, options)
        ready = Ready(opened.runner.info(), opened.placement, opened.batch_tokens)
    except Exception as error:
        connection.send(Failed.of(-1, error))
        return
    threading.Thread(target=_send, args=(connection, outbox), daemon=True).start()
    outbox.put((ready, None))
    while True:
        outbox.put(_embed(inbox.take(), opened.runner))


class _Inbox:
    """The units that wait in a worker."""

    def __init__(
        self,
        connection: Connection[Any, Any],
        parent: int,
        outbox: SimpleQueue[tuple[Any, torch.Tensor | None]],
    ) -> None:
        self._connection = connection
        self._parent = parent
        self._outbox = outbox
        self._waiting: dict[int, Job] = {}
        self._changed = threading.Condition()

    def take(self) -> Job:
        """Wait for a unit; from now on it is not given back."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            return self._waiting.pop(next(iter(self._waiting)))

    def receive(self) -> None:
        """Take what the parent says; the process ends with it, whatever else it is doing."""
        try:
            while True:
                self._take_in(self._next())
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _next(self) -> Job | Recall:
        while not self._connection.poll(_PARENT_CHECK_SECONDS):
            if os.getppid() != self._parent:
                raise EOFError
        message: Job | Recall = self._connection.recv()
        return message

    def _take_in(self, message: Job | Recall) -> None:
        with self._changed:
            if isinstance(message, Job):
                self._waiting[message.number] = message
                self._changed.notify()
            else:
                given = self._waiting.pop(message.number, None) is not None
                self._outbox.put((Recalled(message.number, given), None))


def _send(
    connection: Connection[Any, Any], outbox: SimpleQueue[tuple[Any, torch.Tensor | None]]
) -> None:
    try:
        while True:
            message, tensor = outbox.get()
            connection.send(message)
            if tensor is not None:
                connection.send_bytes(bytes_of(tensor))
    except OSError:  # the parent is gone
        os._exit(0)


def _embed(job: Job, runner: Runner) -> tuple[Done | Failed, torch.Tensor | None]:
    before = copy(runner.stats)
    ranges = None if job.ranges is None else torch.from_numpy(job.ranges)
    output = replace(job.output, ranges=ranges)
    try:
        blocks = list(runner.run(job.texts, job.prompt, job.batch_tokens, output))
    except Exception as error:
        return Failed.of(job.number, error), None
    embeddings = (blocks[0] if len(blocks) == 1 else torch.cat(blocks)).contiguous()
    stats = runner.stats.since(before)
    return Done(job.number, embeddings.dtype, tuple(embeddings.shape), stats), embeddings
