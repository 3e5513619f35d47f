"""The texts of a call on their way into batches: windows, what waits to be computed, batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from c2v_engine.runtime.packing import split_by_tokens
from c2v_engine.runtime.tokenization import TokenizedText


@dataclass
class Window:
    """Consecutive texts of the input, in the middle of being embedded.

    Attributes:
        first_row: of the input.
        size: texts.
        places: for each distinct text, where it stands in the window.
        chunks: numbers of distinct texts, and what their tokenising will give.
        block: the embeddings so far, ``[size, columns]``.
        missing: texts whose embeddings are not there yet.
    """

    first_row: int
    size: int
    places: list[list[int]]
    chunks: list[tuple[list[int], Future[list[TokenizedText]]]] = field(default_factory=list)
    block: torch.Tensor | None = None
    missing: int = 0

    def __post_init__(self) -> None:
        self.missing = self.size

    def put(self, numbers: list[int], embeddings: torch.Tensor) -> int:
        """Put the embeddings of distinct texts in their places; how many these are."""
        if self.block is None:
            self.block = embeddings.new_empty((self.size, embeddings.shape[1]))
        places = [place for number in numbers for place in self.places[number]]
        rows = np.repeat(np.arange(len(numbers)), [len(self.places[number]) for number in numbers])
        # NumPy, which has no bfloat16, copies in this thread: torch would wake one for every
        # processor, beside those that tokenise and launch.
        given, block = (tensor.view(torch.uint8).numpy() for tensor in (embeddings, self.block))
        block[places] = given[rows]
        self.missing -= len(places)
        return len(places)

    def row_of(self, numbers: list[int]) -> int:
        """The first row of the input at which one of these distinct texts stands."""
        return self.first_row + min(min(self.places[number]) for number in numbers)


@dataclass
class Batch:
    """Distinct texts of a window that are computed together.

    Attributes:
        window: that they are of.
        numbers: of the texts in it.
        texts: tokenised.
        prompt: the rows that all of them begin with and that are computed once.
        prompt_cost: rows that each counts more for these.
    """

    window: Window
    numbers: list[int]
    texts: list[TokenizedText]
    prompt: tuple[int, ...]
    prompt_cost: int

    @property
    def rows(self) -> int:
        """Rows of the decoder that it computes."""
        return sum(len(text.token_ids) - len(self.prompt) for text in self.texts)

    @property
    def tokens(self) -> int:
        """Rows of the decoder or tokens of the encoder, whichever are more."""
        rows = self.rows + self.prompt_cost * len(self.texts)
        return max(rows, sum(text.encoder_tokens for text in self.texts))

    def halves(self) -> list[Batch]:
        """The batch in two, each with half of its texts."""
        middle = len(self.texts) // 2
        parts = (slice(None, middle), slice(middle, None))
        return [replace(self, numbers=self.numbers[part], texts=self.texts[part]) for part in parts]


@dataclass
class Budget:
    """Most rows of a batch; falls where memory runs out."""

    tokens: int


class Gathered:
    """Tokenised texts of a window that wait for their batch.

    Args:
        window: that they are of.
        prompt: the rows that all of them begin with and that are computed once.
        prompt_cost: rows that each counts more for these.
    """

    def __init__(self, window: Window, prompt: tuple[int, ...], prompt_cost: int) -> None:
        self._window = window
        self._prompt = prompt
        self._cost = prompt_cost
        self._numbers: list[int] = []
        self._texts: list[TokenizedText] = []

    def add(self, number: int, text: TokenizedText) -> None:
        """Add a text, by its number in the window."""
        self._numbers.append(number)
        self._texts.append(text)

    def batches(self, budget: Budget, last: bool) -> Iterator[Batch]:
        """Whole batches; the last one stays, for texts to come may have room in it."""
        rows = len(self._prompt)
        batches = list(split_by_tokens(self._texts, budget.tokens, rows, self._cost))
        for batch in batches if last else batches[:-1]:
            numbers, texts = self._chosen(batch)
            yield Batch(self._window, numbers, texts, self._prompt, self._cost)
        self._numbers, self._texts = self._chosen([] if last or not batches else batches[-1])

    def _chosen(self, places: list[int]) -> tuple[list[int], list[TokenizedText]]:
        return [self._numbers[i] for i in places], [self._texts[i] for i in places]
