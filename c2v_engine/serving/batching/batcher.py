"""The compute thread: takes what waits, runs it in batches, and gives every request its part."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from c2v_engine.errors import C2VError
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.batch_runner import (
    NOT_FINITE,
    BatchRunner,
    LaunchedBatch,
    ReadyText,
    too_large,
)
from c2v_engine.serving.batching.admission import Admission
from c2v_engine.serving.batching.fair_queue import FairQueue
from c2v_engine.serving.batching.ticket import QueuedText, Ticket
from c2v_engine.serving.contract import BatchReport, EmbedResult, Observer
from c2v_engine.serving.refusals import ComputeError, UnavailableError

# Seconds between attempts to compute again after the model failed.
_FIRST_RETRY = 1.0
_LAST_RETRY = 30.0
# For which batches stay smaller after one did not fit in memory.
_SHRUNK_SECONDS = 600.0
_log = logging.getLogger(__name__)


class _Flight(NamedTuple):
    """A batch that was launched."""

    texts: list[QueuedText]
    batch: LaunchedBatch
    launched: float


class Batcher:
    """Computes what is pushed, in one thread of its own.

    A batch that fails is not the end of its requests: where the model still embeds a text known to
    be good, its texts are tried in halves, so that one text fails its own request only. Where it
    does not, all that waits fails, nothing is taken, and it is tried again from time to time.

    Args:
        runner: computes batches.
        admission: is told how fast it goes.
        batch_tokens: most tokens of a batch.
        probe: a text known to be good, and the format of its embedding.
        observers: told of every batch and failure.
    """

    def __init__(
        self,
        runner: BatchRunner,
        admission: Admission,
        batch_tokens: int,
        probe: tuple[ReadyText, OutputFormat],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.batch_tokens = self._whole_batch = batch_tokens
        self._shrunk = -math.inf
        self.failure: str | None = None
        self._runner = runner
        self._admission = admission
        self._probe = probe
        self._observers = observers
        self._queue = FairQueue()
        self._reserved = 0
        self._changed = threading.Condition()
        self._closing = False
        self._flights: deque[_Flight] = deque()
        self._computing: set[Ticket] = set()  # whose texts were taken and are not all handed out
        self._finished: list[tuple[Ticket, EmbedResult | Exception]] = []
        self._thread = threading.Thread(target=self._live, name="c2v-compute", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue, and those reserved for texts that are being tokenised."""
        return self._queue.tokens + self._reserved

    @property
    def waiting_texts(self) -> int:
        """Texts in the queue."""
        return self._queue.texts

    def admit(self, ticket: Ticket) -> None:
        """Reserve room for a request.

        Raises:
            RequestTooLargeError: there is never room for it.
            OverloadedError: there is none now.
            UnavailableError: the model failed, or the server ends.
        """
        with self._changed:
            self._refuse_if_down()
            self._admission.check(ticket.reserved, self.waiting_tokens)
            self._reserved += ticket.reserved

    def push(
        self, ticket: Ticket, texts: Sequence[QueuedText], estimate: int, *, ahead: bool = False
    ) -> None:
        """Let tokenised texts of a request wait for their batch.

        Args:
            ticket: the request's.
            texts: at least one.
            estimate: what was reserved for them.
            ahead: whether they go before all others.

        Raises:
            UnavailableError: the model failed, or the server ends.
        """
        with self._changed:
            self._refuse_if_down()
            if ticket.over:
                return
            self._release(ticket, estimate)
            self._queue.push(texts, ahead=ahead)
            self._changed.notify()

    def give_up(self, ticket: Ticket) -> None:
        """Nobody waits for a request any more; what was not begun of it is not computed."""
        with self._changed:
            self._end(ticket)

    def close(self) -> None:
        """End the thread; what still waits fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _refuse_if_down(self) -> None:
        if self._closing:
            raise UnavailableError("the server is shutting down")
        if self.failure is not None:
            raise UnavailableError(f"the model does not embed: {self.failure}")

    def _release(self, ticket: Ticket, tokens: int) -> None:
        tokens = min(tokens, ticket.reserved)
        ticket.reserved -= tokens
        self._reserved -= tokens

    def _end(self, ticket: Ticket) -> None:
        ticket.over = True
        self._computing.discard(ticket)
        self._release(ticket, ticket.reserved)
        self._queue.drop(ticket)

    # --- in the compute thread --------------------------------------------------------------------

    def _live(self) -> None:
        retry = _FIRST_RETRY
        while True:
            if self.failure is None:
                retry = _FIRST_RETRY
                try:
                    if not self._turn():
                        return
                except Exception as error:
                    self._fail(_reason(error))
            else:
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, timeout=retry):
                        return
                retry = min(2 * retry, _LAST_RETRY)
                self._recover()

    def _turn(self) -> bool:
        """Launch a batch or collect one; False when it is time to end."""
        with self._changed:
            while not self._queue.texts and not self._flights and not self._closing:
                self._changed.wait()
            closing = self._closing  # once: it may come while texts are taken, which are then done
            if closing:
                self._fail_waiting(UnavailableError("the server is shutting down"))
            if time.monotonic() - self._shrunk > _SHRUNK_SECONDS:
                self.batch_tokens = self._whole_batch  # whatever took the memory may be gone
            texts = self._queue.take(self.batch_tokens)
            for text in texts:
                text.ticket.launched()
                self._computing.add(text.ticket)
        if closing and not self._flights:
            self._deliver()
            return False
        if texts:
            self._launch(texts)
        while self._flights and (not texts or len(self._flights) > self._runner.ahead):
            self._collect(self._flights.popleft())
            if not texts:
                break  # something may wait by now
        self._deliver()
        return True

    def _launch(self, texts: list[QueuedText]) -> None:
        try:
            self._flights.append(self._launched(texts))
            return
        except torch.OutOfMemoryError:
            self._collect_all()
            self._runner.release_memory()
        except Exception as error:
            self._collect_all()
            self._isolate(texts, error)
            return
        try:
            self._flights.append(self._launched(texts))
        except torch.OutOfMemoryError:
            if len(texts) == 1:
                ready = texts[0].ready
                self._fail_text(texts[0], too_large(ready.text, texts[0].row))
                return
            middle = len(texts) // 2
            halves = texts[:middle], texts[middle:]
            largest = max(sum(text.ready.tokens for text in half) for half in halves)
            self.batch_tokens = min(self.batch_tokens, largest)
            self._shrunk = time.monotonic()
            for half in halves:
                self._launch(half)
        except Exception as error:
            self._isolate(texts, error)

    def _launched(self, texts: list[QueuedText]) -> _Flight:
        now = time.perf_counter()
        batch = self._runner.launch([text.ready for text in texts], texts[0].ticket.output)
        return _Flight(texts, batch, now)

    def _collect_all(self) -> None:
        while self._flights:
            self._collect(self._flights.popleft())

    def _collect(self, flight: _Flight) -> None:
        try:
            embeddings, finite = flight.batch.result()
        except Exception as error:
            self._isolate(flight.texts, error)
            return
        now = time.perf_counter()
        tokens = sum(text.ready.tokens for text in flight.texts)
        self._admission.speed.add(tokens, flight.launched, now)
        self._report(
            lambda observer: observer.batch(
                BatchReport(len(flight.texts), tokens, self.batch_tokens, now - flight.launched)
            )
        )
        good = finite.numpy()
        if not good.all():
            self._find_bad(flight.texts, good)
        self._hand_out(flight.texts, embeddings.numpy(), good)

    def _find_bad(self, texts: list[QueuedText], good: np.ndarray) -> None:
        """Texts without a finite embedding fail; so does the model, if a good text has none."""
        for place in np.flatnonzero(~good).tolist():
            self._fail_text(texts[place], ComputeError(f"text {texts[place].row}: {NOT_FINITE}"))
        self._report(lambda observer: observer.failure(NOT_FINITE))
        reason = self._try_probe()
        if reason is not None:
            self._fail(reason)

    def _hand_out(self, texts: list[QueuedText], embeddings: np.ndarray, good: np.ndarray) -> None:
        places: dict[Ticket, list[int]] = {}
        for place, text in enumerate(texts):
            if good[place]:
                places.setdefault(text.ticket, []).append(place)
        for ticket, chosen in places.items():
            if ticket.over:
                continue
            rows = [texts[place].row for place in chosen]
            if ticket.put(rows, embeddings if len(chosen) == len(texts) else embeddings[chosen]):
                self._finish(ticket, ticket.result())

    def _isolate(self, texts: list[QueuedText], error: Exception) -> None:
        """A batch failed: is it the model, or one of these texts?"""
        reason = _reason(error)
        self._report(lambda observer: observer.failure(reason))
        broken = self._try_probe()
        if broken is not None:
            for text in texts:
                self._fail_text(text, ComputeError(f"the model failed: {reason}"))
            self._fail(broken)
            return
        if len(texts) == 1:
            row = texts[0].row
            self._fail_text(texts[0], ComputeError(f"text {row}: the model failed: {reason}"))
            return
        middle = len(texts) // 2
        for half in (texts[:middle], texts[middle:]):
            wanted = [text for text in half if not text.ticket.over]
            if not wanted:
                continue
            try:
                flight = self._launched(wanted)
            except Exception as again:
                self._isolate(wanted, again)
            else:
                self._collect(flight)

    def _try_probe(self) -> str | None:
        """Embed a text known to be good; why that failed, or None."""
        ready, output = self._probe
        try:
            _, finite = self._runner.launch([ready], output).result()
        except Exception as error:
            return _reason(error)
        return None if finite.all() else NOT_FINITE

    def _fail_text(self, text: QueuedText, error: Exception) -> None:
        if not text.ticket.over:
            self._finish(text.ticket, error)

    def _finish(self, ticket: Ticket, outcome: EmbedResult | Exception) -> None:
        with self._changed:
            self._end(ticket)
        self._finished.append((ticket, outcome))

    def _fail(self, reason: str) -> None:
        """The model does not work: nothing is taken until it does."""
        while self._flights:
            with contextlib.suppress(Exception):
                self._flights.popleft().batch.result()
        for ticket in list(self._computing):
            self._finish(ticket, ComputeError(f"the model failed: {reason}"))
        with self._changed:
            self.failure = reason
            self._fail_waiting(UnavailableError(f"the model does not embed: {reason}"))
        self._report(lambda observer: observer.failure(reason))
        self._deliver()

    def _fail_waiting(self, error: C2VError) -> None:
        for ticket in self._queue.tickets():
            self._finish(ticket, error)

    def _recover(self) -> None:
        reason = self._try_probe()
        with self._changed:
            self.failure = reason

    def _deliver(self) -> None:
        """Hand finished requests to their event loops, in one call for each."""
        finished, self._finished = self._finished, []
        loops: dict[object, list[tuple[Ticket, EmbedResult | Exception]]] = {}
        for entry in finished:
            loops.setdefault(entry[0].loop, []).append(entry)
        for entries in loops.values():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                entries[0][0].loop.call_soon_threadsafe(_resolve, entries)

    def _report(self, tell: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:  # this thread is the only one that computes
                _log.exception("%s failed", type(observer).__name__)


def _reason(error: Exception) -> str:
    """An exception that nobody foresaw, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _resolve(finished: list[tuple[Ticket, EmbedResult | Exception]]) -> None:
    for ticket, outcome in finished:
        if ticket.done.done():  # given up meanwhile
            continue
        if isinstance(outcome, Exception):
            ticket.done.set_exception(outcome)
        else:
            ticket.done.set_result(outcome)
