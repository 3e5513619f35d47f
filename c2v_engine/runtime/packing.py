"""From tokenised texts to a ``PackedBatch``: token budget, one buffer, one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from c2v_engine.model.config import EncoderPooling
from c2v_engine.model.packed_batch import EncoderInput, PackedBatch, PackedSequences
from c2v_engine.model.rounding import rounded_tokens
from c2v_engine.model.template import CONTEXT, Template
from c2v_engine.runtime.tokenization import TokenizedText


@dataclass(frozen=True)
class PackingRules:
    """What of a config the packing needs.

    Attributes:
        context_entries: template indices of ``<context>``.
        pooled: template index of each part of the embedding.
        encoder_pooling: how encoder states are averaged.
    """

    context_entries: tuple[int, ...]
    pooled: tuple[int, ...]
    encoder_pooling: EncoderPooling

    @classmethod
    def from_template(cls, template: Template, encoder_pooling: EncoderPooling) -> PackingRules:
        """Read off a template."""
        context = [i for i, entry in enumerate(template.entries) if entry.kind == CONTEXT]
        return cls(tuple(context), template.pooled, encoder_pooling)

    def pooled_range(self, text: TokenizedText, entry: int) -> tuple[int, int]:
        """The rows of one part of the embedding.

        An entry without rows, such as that of an empty text, is replaced by the whole sequence, so
        that an empty text has a vector.
        """
        start, end = text.bounds[entry], text.bounds[entry + 1]
        return (start, end) if start < end else (0, text.bounds[-1])


def split_by_tokens(texts: Sequence[TokenizedText], batch_tokens: int) -> Iterator[list[int]]:
    """Cut texts, longest first, into batches of at most ``batch_tokens`` rows in either model.

    A text longer than the budget makes a batch of its own.
    """
    order = sorted(
        range(len(texts)),
        key=lambda i: (-len(texts[i].token_ids), -texts[i].encoder_tokens),
    )
    batch: list[int] = []
    rows = encoder_rows = 0
    for index in order:
        text = texts[index]
        rows += len(text.token_ids)
        encoder_rows += text.encoder_tokens
        if batch and max(rows, encoder_rows) > batch_tokens:
            yield batch
            batch = []
            rows, encoder_rows = len(text.token_ids), text.encoder_tokens
        batch.append(index)
    if batch:
        yield batch


class _Buffer:
    """Collects int32 arrays and hands out views of their joined tensor."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, values: np.ndarray) -> slice:
        start = self._size
        self._parts.append(np.asarray(values, dtype=np.int32))
        self._size += len(values)
        return slice(start, self._size)

    def to(self, device: torch.device) -> torch.Tensor:
        host = torch.from_numpy(np.concatenate(self._parts))
        if device.type == "cuda":
            host = host.pin_memory()
        return host.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Sequences:
    """Slices of one ``PackedSequences`` in the buffer."""

    token_ids: slice
    position_ids: slice
    cu_seqlens: slice
    lengths: np.ndarray
    fillers: int

    def view(self, buffer: torch.Tensor) -> PackedSequences:
        return PackedSequences(
            buffer[self.token_ids],
            buffer[self.position_ids],
            buffer[self.cu_seqlens],
            self.lengths,
            self.fillers,
        )


def _filler_lengths(lengths: list[int]) -> list[int]:
    """Sequences, none longer than a real one, that round the number of tokens up."""
    tokens, longest = sum(lengths), max(lengths)
    whole, rest = divmod(rounded_tokens(tokens) - tokens, longest)
    return [longest] * whole + [rest] * (rest > 0)


def _add_sequences(buffer: _Buffer, sequences: list[np.ndarray], round_up: bool) -> _Sequences:
    real = [len(sequence) for sequence in sequences]
    fillers = _filler_lengths(real) if round_up else []
    sequences = [*sequences, *(np.zeros(length, dtype=np.int32) for length in fillers)]
    lengths = np.array([*real, *fillers], dtype=np.int64)
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    return _Sequences(
        buffer.add(np.concatenate(sequences)),
        buffer.add(positions),
        buffer.add(cu_seqlens),
        lengths,
        len(fillers),
    )


def pack(
    texts: Sequence[TokenizedText], rules: PackingRules, batch_tokens: int, device: torch.device
) -> PackedBatch:
    """Lay texts end to end and move them to the device in one copy.

    Args:
        texts: at least one.
        rules: of the checkpoint.
        batch_tokens: most tokens of one encoder pass.
        device: of the model.
    """
    buffer = _Buffer()
    round_up = device.type == "cpu"
    sequences = [_marked(text, number, rules) for number, text in enumerate(texts)]
    decoder = _add_sequences(buffer, sequences, round_up)
    starts = (np.cumsum(decoder.lengths) - decoder.lengths)[: len(texts)]
    ranges = [
        (start + first, start + end)
        for start, text in zip(starts, texts, strict=True)
        for first, end in (rules.pooled_range(text, entry) for entry in rules.pooled)
    ]
    first, end = np.array(ranges, dtype=np.int64).T
    sizes = end - first
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    pooled_rows = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], sizes)

    slices = [buffer.add(pooled_rows), buffer.add(offsets)]
    passes = _encoder_passes(buffer, texts, rules.encoder_pooling, batch_tokens, round_up)
    counts = [
        len(text.windows) if rules.encoder_pooling == "cls" else text.encoder_tokens
        for text in texts
    ]
    encoder_counts = buffer.add(np.array(counts, dtype=np.int64))

    tensor = buffer.to(device)
    return PackedBatch(
        tensor,
        decoder.view(tensor),
        tuple(
            EncoderInput(s.view(tensor), None if rows is None else tensor[rows], tensor[offsets])
            for s, rows, offsets in passes
        ),
        tensor[encoder_counts],
        *(tensor[part] for part in slices),
    )


def _marked(text: TokenizedText, number: int, rules: PackingRules) -> np.ndarray:
    """The decoder's ids of a text, with its own number in the batch where a context stands."""
    token_ids: np.ndarray = text.token_ids.copy()
    for entry in rules.context_entries:
        token_ids[text.bounds[entry]] = -1 - number
    return token_ids


def _encoder_passes(
    buffer: _Buffer,
    texts: Sequence[TokenizedText],
    pooling: EncoderPooling,
    batch_tokens: int,
    round_up: bool,
) -> list[tuple[_Sequences, slice | None, slice]]:
    """Windows of all texts, cut into passes of at most ``batch_tokens`` tokens."""
    windows = [(number, window) for number, text in enumerate(texts) for window in text.windows]
    passes = []
    begin = 0
    while begin < len(windows):
        end, tokens = begin, 0
        while end < len(windows):
            tokens += len(windows[end][1])
            if end > begin and tokens > batch_tokens:
                break
            end += 1
        numbers = [number for number, _ in windows[begin:end]]
        chosen = [window for _, window in windows[begin:end]]
        sequences = _add_sequences(buffer, chosen, round_up)
        lengths = sequences.lengths[: len(chosen)]
        rows: slice | None = None
        if pooling == "cls":
            rows = buffer.add(np.cumsum(lengths) - lengths)
            lengths = np.ones_like(lengths)
        counts = np.zeros(len(texts), dtype=np.int64)
        np.add.at(counts, numbers, lengths)
        offsets = buffer.add(np.concatenate(([0], np.cumsum(counts))))
        passes.append((sequences, rows, offsets))
        begin = end
    return passes
