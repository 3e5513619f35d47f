"""A request on its way: what it waits for, and what it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.batch_runner import ReadyText
from c2v_engine.serving.contract import EmbedResult, Timings

_numbers = count()


@dataclass(eq=False)
class QueuedText:
    """One text of a request, while it waits.

    Attributes:
        ticket: the request's.
        row: of the text in it.
        ready: the text, tokenised.
    """

    ticket: Ticket
    row: int
    ready: ReadyText


class Ticket:
    """A request's texts and embeddings; made in the event loop, filled in the compute thread.

    Args:
        loop: in which the request waits.
        texts: how many it has.
        output: the format of its embeddings.
        estimate: tokens that were reserved for it on arrival.

    Attributes:
        done: resolved to an ``EmbedResult`` or an error, in the loop.
        over: whether nobody waits for it any more: failed, done, timed out or given up. What of it
            still waits is not computed.
        reserved: tokens that are still reserved for texts not tokenised yet.
        waiting_tokens: of its texts in the queue.
        waiting_texts: likewise.
        pushed_tokens: that have been in the queue so far.
        virtual_begin: when the first of them came, by the fair queue's clock.
        number: that no other request has.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, texts: int, output: OutputFormat, estimate: int
    ) -> None:
        self.loop = loop
        self.output = output
        self.done: asyncio.Future[EmbedResult] = loop.create_future()
        self.over = False
        self.reserved = estimate
        self.waiting_tokens = 0
        self.waiting_texts = 0
        self.pushed_tokens = 0
        self.virtual_begin = 0.0
        self.number = next(_numbers)
        self.tokens = np.zeros(texts, dtype=np.int64)
        self._embeddings: np.ndarray | None = None
        self._missing = texts
        self._arrived = time.perf_counter()
        self._tokenized = self._arrived
        self._launched: float | None = None
        self._finished = self._arrived

    def tokenized(self) -> None:
        """The last of its texts is tokenised."""
        self._tokenized = time.perf_counter()

    def launched(self) -> None:
        """Some of its texts are being computed."""
        if self._launched is None:
            self._launched = time.perf_counter()

    def put(self, rows: Sequence[int], embeddings: np.ndarray) -> bool:
        """Take the embeddings ``[len(rows), columns]`` of some rows; whether these were the last.

        They are copied: the memory they come in is used again.
        """
        if self._embeddings is None:
            shape = (len(self.tokens), embeddings.shape[1])
            self._embeddings = np.empty(shape, dtype=embeddings.dtype)
        self._embeddings[list(rows)] = embeddings
        self._missing -= len(rows)
        self._finished = time.perf_counter()
        return self._missing == 0

    def result(self) -> EmbedResult:
        """What was asked for, when the last row is there."""
        assert self._embeddings is not None
        launched = self._finished if self._launched is None else self._launched
        # A large request is launched before its last text is tokenised: stages do not overlap.
        tokenized = min(self._tokenized, launched)
        timings = Timings(
            tokenized - self._arrived, launched - tokenized, self._finished - launched
        )
        return EmbedResult(self._embeddings, self.tokens, timings)
