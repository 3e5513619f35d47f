"""Counting what goes through a pipeline, and whether its device had work; from several threads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

import numpy as np

from c2v_engine.runtime.stats import LENGTH_BUCKETS, EncodeStats
from c2v_engine.runtime.tokenization import TokenizedText


class Counted(Protocol):
    """A batch, as it is counted: its distinct texts, and the rows they begin with."""

    @property
    def texts(self) -> Sequence[TokenizedText]:
        """Distinct texts."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Ids of the leading rows that were not computed with them."""


class Counter:
    """Keeps the stats of one device.

    Time is busy while any batch is under way, else waited while any call wants its next batch:
    calls of several threads share the device, and no second is counted twice.

    Attributes:
        stats: what has gone through.
    """

    def __init__(self) -> None:
        self.stats = EncodeStats()
        self._lock = Lock()
        self._under_way = 0
        self._waiting = 0
        self._since = time.perf_counter()

    def begin(self) -> None:
        """A batch is about to be launched."""
        self._turn(1, 0)

    def end(self) -> None:
        """A batch has come back, or was not launched after all."""
        self._turn(-1, 0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A call waits for its next batch inside."""
        self._turn(0, 1)
        try:
            yield
        finally:
            self._turn(0, -1)

    @contextmanager
    def tokenizing(self) -> Iterator[None]:
        """A thread tokenises inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.stats.tokenize_seconds += time.perf_counter() - start

    def add(self, batch: Counted, texts: int) -> None:
        """A batch gave the embeddings of so many texts, equal ones counted each."""
        lengths = np.array([len(text.token_ids) for text in batch.texts])
        tokens = int(lengths.sum()) - len(batch.prompt) * len(lengths)
        encoder_tokens = sum(text.encoder_tokens for text in batch.texts)
        buckets = np.frexp(lengths)[1] - 1  # exact, unlike a logarithm
        counts = np.bincount(buckets, minlength=LENGTH_BUCKETS)
        with self._lock:
            self.stats.texts += texts
            self.stats.tokens += tokens
            self.stats.encoder_tokens += encoder_tokens
            self.stats.batches += 1
            self.stats.lengths = self.stats.lengths + counts

    def _turn(self, under_way: int, waiting: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._under_way:
                self.stats.busy_seconds += now - self._since
            elif self._waiting:
                self.stats.wait_seconds += now - self._since
            self._since = now
            self._under_way += under_way
            self._waiting += waiting
