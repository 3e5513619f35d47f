"""CUDA graphs for small batches, where launching kernels takes longer than running them.

A graph replays launches with the very addresses and counts that it was captured with. So small
batches are filled up to one of a few shapes, powers of two in every count, with texts of one row
and sequences of no text, and each shape is captured when it is met the second time. Graphs that
were not used for long are dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.model.rounding import Rounding
from c2v_engine.runtime.packing import BatchShape, HostBatch
from c2v_engine.runtime.tokenization import TokenizedText

MOST_TOKENS = 4096
FEWEST_TOKENS = 16
# Kernels of a batch that is over twice as large as its texts run longer than launches would take.
_MOST_PADDING = 2
_KEPT_GRAPHS = 64


def bucket(count: int, fewest: int = 1) -> int:
    """The power of two, or of the fewest, that is not below a count."""
    return max(fewest, 1 << max(count - 1, 0).bit_length())


class ShapeChooser:
    """Chooses what small batches are filled up to.

    Args:
        config: the checkpoint's.
        rounding: of row counts.
    """

    def __init__(self, config: Causal2VecConfig, rounding: Rounding) -> None:
        self._max_length = config.max_length
        encoder = config.encoder
        self._encoder_max_length = 0 if encoder is None else encoder.max_length
        self._rounding = rounding

    def choose(self, texts: Sequence[TokenizedText], prompt_rows: int) -> BatchShape | None:
        """The shape for a batch; None where it is better run as it is.

        Args:
            texts: of the batch.
            prompt_rows: leading rows of every text that are not computed with it.
        """
        if any(len(text.windows) > 1 for text in texts):
            return None  # how many windows there are would be part of the shape
        rows = sum(len(text.token_ids) - prompt_rows for text in texts)
        encoder_rows = sum(text.encoder_tokens for text in texts)
        if max(rows, encoder_rows) > MOST_TOKENS:
            return None
        count = bucket(len(texts))
        added = count - len(texts)
        tokens = self._tokens(rows + added)
        windows = bool(self._encoder_max_length)
        encoder_tokens = self._tokens(encoder_rows + added) if windows else 0
        wasteful = tokens > _MOST_PADDING * max(rows, FEWEST_TOKENS)
        wasteful |= encoder_tokens > _MOST_PADDING * max(encoder_rows, FEWEST_TOKENS)
        if max(tokens, encoder_tokens) > MOST_TOKENS or (
            wasteful and self._rounding.block_rows is None
        ):
            return None
        longest = min(tokens, self._max_length - prompt_rows)
        encoder_longest = min(encoder_tokens, self._encoder_max_length)
        return BatchShape(count, tokens, encoder_tokens, longest, encoder_longest)

    def _tokens(self, rows: int) -> int:
        return self._rounding.tokens(bucket(rows, FEWEST_TOKENS))


class Replay(Protocol):
    """A captured batch; keeps alive whatever its graph reads."""

    def __call__(
        self, buffer: torch.Tensor, ranges: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and norms of a batch whose buffer is on the device; valid until the next.

        Args:
            buffer: of the batch.
            ranges: of the output's format.
        """
        ...


Capture = Callable[[HostBatch, OutputFormat], Replay]
"""Makes the replay of batches like a given one."""


class _Key(NamedTuple):
    shape: BatchShape
    prompt: tuple[int, ...]
    keep: int
    normalize: bool
    precision: str


class GraphCache:
    """The graphs of one model, captured as they are needed.

    What comes once, such as the last batch of a corpus, is not worth a capture: a graph is made
    when its shape is met the second time.
    """

    def __init__(self) -> None:
        # None for what was met once, or can not be captured for want of memory.
        self._replays: OrderedDict[_Key, Replay | None] = OrderedDict()
        self._refused: set[_Key] = set()

    def __len__(self) -> int:
        return sum(replay is not None for replay in self._replays.values())

    def replay_for(self, batch: HostBatch, output: OutputFormat, capture: Capture) -> Replay | None:
        """The replay for a batch that was filled up to its shape, or None: run it as it is.

        Args:
            batch: on the host.
            output: its format.
            capture: captures a batch that is met the second time.
        """
        assert batch.shape is not None
        key = _Key(batch.shape, batch.prompt, output.keep, output.normalize, output.precision)
        met = key in self._replays
        replay = self._replays.get(key)
        if met and replay is None and key not in self._refused:
            try:
                replay = capture(batch, output)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                # A graph has memory of its own; launched one by one the batch may well fit. What
                # else was wrong with the device will show there.
                self._refused.add(key)
        self._replays[key] = replay
        self._replays.move_to_end(key)
        while len(self._replays) > _KEPT_GRAPHS:
            oldest, _ = self._replays.popitem(last=False)
            self._refused.discard(oldest)
        return replay

    def clear(self) -> None:
        """Drop all graphs, and the memory that they hold."""
        self._replays.clear()
        self._refused.clear()
