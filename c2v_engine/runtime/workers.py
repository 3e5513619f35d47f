"""Several processes that embed together, a device each: windows are cut up and joined again."""

from __future__ import annotations

import operator
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import torch

from c2v_engine.errors import BackendError, TextError
from c2v_engine.model.checkpoint import CheckpointDescription
from c2v_engine.model.device import resolve_device
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.dispatch import Dispatcher
from c2v_engine.runtime.opening import PipelineOptions
from c2v_engine.runtime.pipeline import take_window
from c2v_engine.runtime.runner import Runner
from c2v_engine.runtime.stats import EncodeStats
from c2v_engine.runtime.units import Call, Outcome, Unit, cut_by_cost
from c2v_engine.runtime.worker_handle import start_workers
from c2v_engine.runtime.worker_process import Opener, open_worker

# While the workers are busy with one window the next is read.
_WINDOWS = 2
# Texts are measured in characters, for they are tokenised by the workers; a token has about this
# many in most languages, and every text has some rows that the template adds.
_CHARACTERS_PER_TOKEN = 4
_TEMPLATE_CHARACTERS = 12


@dataclass(eq=False)
class _Window:
    """Consecutive texts of the input, in the middle of being embedded."""

    first_row: int
    # Of the blocks that one process would give.
    sizes: list[int]
    # Where each distinct text stands in the window.
    places: dict[str, list[int]]
    embeddings: torch.Tensor | None = None
    failure: Exception | None = None
    done: int = 0

    @property
    def missing(self) -> bool:
        """Whether there is more to wait for.

        Raises:
            TextError: a text can not be embedded; or whatever else befell a worker.
        """
        if self.failure is not None:
            raise self.failure
        return self.done < sum(self.sizes)

    def put(self, texts: list[str], embeddings: torch.Tensor) -> int:
        """Put the embeddings of distinct texts in their places; how many these are."""
        if self.embeddings is None:
            self.embeddings = embeddings.new_empty((sum(self.sizes), embeddings.shape[1]))
        places = [place for text in texts for place in self.places[text]]
        repeats = torch.tensor([len(self.places[text]) for text in texts])
        self.embeddings[torch.tensor(places)] = embeddings.repeat_interleave(repeats, dim=0)
        self.done += len(places)
        return len(places)

    def fail(self, error: Exception, texts: list[str]) -> None:
        """Some of its texts were not embedded; of an error that names one, the row is theirs."""
        if isinstance(error, TextError):
            error = TextError(self.first_row + self.places[texts[error.row]][0], error.reason)
        self.failure = self.failure or error

    def blocks(self) -> Iterator[torch.Tensor]:
        """The blocks of a whole window."""
        assert self.embeddings is not None
        yield from self.embeddings.split(self.sizes)


@dataclass(eq=False)
class _WindowUnit(Unit):
    """Distinct texts of a window."""

    window: _Window


class _Source:
    """Cuts the input into windows.

    Args:
        texts: the input.
        parts: how many windows of one process make one here.

    Attributes:
        failure: what ended the input, after texts that are good; None where it just ended.
    """

    def __init__(self, texts: Iterable[str], parts: int) -> None:
        self._texts = iter(texts)
        self._parts = parts
        self._row = 0
        self._over = False
        self.failure: Exception | None = None

    def next_window(self) -> _Window | None:
        """Read on; None at the end."""
        window = _Window(self._row, [], {})
        while not self._over and len(window.sizes) < self._parts:
            part = self._next_part()
            for row, text in enumerate(part, self._row):
                window.places.setdefault(text, []).append(row - window.first_row)
            self._row += len(part)
            if part:
                window.sizes.append(len(part))
        return window if window.sizes else None

    def _next_part(self) -> list[str]:
        part: list[str] = []
        try:
            part = take_window(self._texts, self._row)
        except Exception as error:
            self.failure = error
        self._over = not part
        return part


class WorkerPool(Runner):
    """Embeds texts in a process for each device.

    A window of the input is cut into units of like lengths, the longest first and the last ones
    smallest. A worker holds two of them at most; when none is left for one that has nothing to do,
    it gets what the most loaded worker has not started. The weights are read by the workers alone.

    Args:
        directory: of the checkpoint.
        options: how it is opened; the device in them is not read.
        devices: numbers of GPUs, or names. A device that is named twice gets two processes, each
            with the model in memory of its own.
        opener: loads the model in each process; for tests.

    Attributes:
        description: what the checkpoint says of itself.
        placement: of the first worker.
        devices: their names.
        stats: what has gone through.

    Raises:
        ConfigError: its ``config.json`` is missing or wrong.
        CheckpointError: its files do not fit together.
        BackendError: devices that can not be used here, or not together; or a process that ended.
    """

    def __init__(
        self,
        directory: str | Path,
        options: PipelineOptions,
        devices: Sequence[str | int],
        opener: Opener = open_worker,
    ) -> None:
        self.devices = device_names(devices)
        self.description = CheckpointDescription.read(directory)
        workers = start_workers(self.description.directory, options, self.devices, opener)
        ready = [worker.ready for worker in workers if worker.ready is not None]
        self._dispatcher = Dispatcher(workers)
        # Also where the pool is forgotten, and when the interpreter ends.
        self._finalizer = weakref.finalize(self, self._dispatcher.close)
        self.placement = ready[0].placement
        self._info = ready[0].info | {"device": ", ".join(self.devices)}
        self._batch_tokens = max(one.batch_tokens for one in ready)
        self.stats = EncodeStats()
        self._counting = Lock()
        dtypes = [(one.placement.dtype, one.placement.weights) for one in ready]
        if len(set(dtypes)) > 1:
            self.close()
            each = ", ".join(
                f"{device} {one[0]}" for device, one in zip(self.devices, dtypes, strict=True)
            )
            raise BackendError(
                f"the devices would compute in different dtypes ({each}): pass dtype"
            )

    def run(
        self,
        texts: Iterable[str],
        prompt: str,
        batch_tokens: int | None,
        output: OutputFormat,
        report: Callable[[int], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """See the base class; the blocks are those that one process gives.

        Up to two windows are read ahead of what is returned, each of 8,192 texts for every worker.
        Of several texts of a window that can not be embedded, the error names any. Units that were
        started are finished after the iterator is closed, and dropped.

        Raises:
            BackendError: a worker process ended, the pool was closed, or this is a forked copy of
                the process that opened it.
        """
        self._dispatcher.check()
        call = Call(prompt, batch_tokens, output)
        source = _Source(texts, len(self.devices))
        windows: deque[_Window] = deque()
        try:
            while True:
                while len(windows) < _WINDOWS and (following := source.next_window()) is not None:
                    windows.append(following)
                    self._dispatcher.submit(self._units(following, call))
                if not windows:
                    break
                while windows[0].missing:
                    self._take(call.outcomes.get(), report)
                yield from windows.popleft().blocks()
            if source.failure is not None:
                raise source.failure
        finally:
            self._dispatcher.abandon(call)

    def info(self) -> dict[str, str]:
        """Where and how the model runs; all but the devices as the first worker says it."""
        return dict(self._info)

    def close(self) -> None:
        """End the worker processes, whatever they are doing; calls that wait for them fail."""
        self._finalizer()

    def _units(self, window: _Window, call: Call) -> list[_WindowUnit]:
        """Cut a window: the longest texts first, ever less of them as little is left."""
        most = self.description.config.max_length * _CHARACTERS_PER_TOKEN
        texts = sorted(window.places, key=len, reverse=True)
        costs = [min(most, len(text) + len(call.prompt)) + _TEMPLATE_CHARACTERS for text in texts]
        batch = (call.batch_tokens or self._batch_tokens) * _CHARACTERS_PER_TOKEN
        return [
            _WindowUnit(call, texts[part], sum(costs[part]), window)
            for part in cut_by_cost(costs, len(self.devices), batch)
        ]

    def _take(self, outcome: Outcome, report: Callable[[int], None] | None) -> None:
        """Put what a worker has done in its place, and count it."""
        unit = outcome.unit
        if not isinstance(unit, _WindowUnit):
            assert outcome.error is not None
            raise outcome.error
        if outcome.embeddings is None:
            assert outcome.error is not None
            unit.window.fail(outcome.error, unit.texts)
            return
        count = unit.window.put(unit.texts, outcome.embeddings)
        with self._counting:  # calls of several threads
            self.stats.add(replace(outcome.stats, texts=count))
        if report is not None:
            report(count)


def device_names(devices: Sequence[str | int]) -> list[str]:
    """The devices that are meant, by their names: ``cpu`` and ``cuda:N``.

    Raises:
        BackendError: none, or one that is not there or not supported.
    """
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence) or not devices:
        raise BackendError(
            f"devices is {devices!r}, expected a list of GPU numbers or names, such as [0, 1] or "
            "['cpu', 'cpu']"
        )
    return [_device_name(device) for device in devices]


def _device_name(device: object) -> str:
    if isinstance(device, str):
        found = resolve_device(device)
    else:
        try:
            number = operator.index(device)  # type: ignore[arg-type]
        except TypeError:
            number = -1
        if isinstance(device, bool) or number < 0:
            raise BackendError(f"devices holds {device!r}, expected GPU numbers or names")
        found = resolve_device(f"cuda:{number}")
    return "cpu" if found.type == "cpu" else f"cuda:{found.index or 0}"
