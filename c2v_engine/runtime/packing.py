"""From tokenised texts to a ``PackedBatch``: token budget, one buffer, one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from c2v_engine.model.config import EncoderPooling
from c2v_engine.model.packed_batch import EncoderInput, KeySequences, PackedBatch, PackedSequences
from c2v_engine.model.rounding import Rounding, in_pieces
from c2v_engine.model.template import CONTEXT, Template
from c2v_engine.runtime.tokenization import TokenizedText

_PADDING_TOKEN = np.zeros(1, dtype=np.int32)


@dataclass(frozen=True)
class PackingRules:
    """What of a config the packing needs.

    Attributes:
        context_entries: template indices of ``<context>``.
        pooled: template index of each part of the embedding, as ``Template.pooled`` has it.
        encoder_pooling: how encoder states are averaged.
        summary_tokens: how many rows at the end of a sequence are summary tokens.
    """

    context_entries: tuple[int, ...]
    pooled: tuple[int, ...]
    encoder_pooling: EncoderPooling
    summary_tokens: int = 0

    @classmethod
    def from_template(cls, template: Template, encoder_pooling: EncoderPooling) -> PackingRules:
        """Read off a template."""
        context = [i for i, entry in enumerate(template.entries) if entry.kind == CONTEXT]
        return cls(tuple(context), template.pooled, encoder_pooling, template.summary_tokens)

    @property
    def alone(self) -> int:
        """How many of a sequence's last rows see what stands before them, but not each other.

        One summary token is like any last row.
        """
        return self.summary_tokens if self.summary_tokens > 1 else 0

    def pooled_range(self, text: TokenizedText, entry: int) -> tuple[int, int]:
        """The rows of one part of the embedding.

        An entry without rows, such as that of an empty text, is replaced by the whole sequence, so
        that an empty text has a vector. Past the last entry stands the whole sequence itself.
        """
        if entry == len(text.bounds) - 1:
            return 0, text.bounds[-1]
        start, end = text.bounds[entry], text.bounds[entry + 1]
        return (start, end) if start < end else (0, text.bounds[-1])

    def first_own_row(self, text: TokenizedText) -> int:
        """The first row of a text that no other text has in common with it, or that is pooled."""
        rows = [text.bounds[entry] for entry in self.context_entries]
        rows += [self.pooled_range(text, entry)[0] for entry in self.pooled]
        return min(rows)


@dataclass(frozen=True)
class BatchShape:
    """The counts of a batch that is filled up to them, so that a CUDA graph can replay it.

    Attributes:
        texts: texts, those that fill up included.
        decoder_tokens: rows of the decoder.
        encoder_tokens: of the encoder, in one pass; 0 without one.
        longest: most rows of a decoder's sequence.
        encoder_longest: likewise of the encoder's.
    """

    texts: int
    decoder_tokens: int
    encoder_tokens: int
    longest: int
    encoder_longest: int


def split_by_tokens(
    texts: Sequence[TokenizedText], batch_tokens: int, prompt_rows: int = 0, prompt_cost: int = 0
) -> Iterator[list[int]]:
    """Cut texts, longest first, into batches of at most ``batch_tokens`` rows in either model.

    A text longer than the budget makes a batch of its own.

    Args:
        texts: any number.
        batch_tokens: the budget.
        prompt_rows: leading rows of every text that are not computed with it.
        prompt_cost: rows that a text counts more for the keys and values of its prompt.
    """
    order = sorted(
        range(len(texts)),
        key=lambda i: (-len(texts[i].token_ids), -texts[i].encoder_tokens),
    )
    batch: list[int] = []
    rows = encoder_rows = 0
    for index in order:
        text = texts[index]
        own = len(text.token_ids) - prompt_rows + prompt_cost
        rows += own
        encoder_rows += text.encoder_tokens
        if batch and max(rows, encoder_rows) > batch_tokens:
            yield batch
            batch = []
            rows, encoder_rows = own, text.encoder_tokens
        batch.append(index)
    if batch:
        yield batch


class _Buffer:
    """Collects int32 arrays and tells where each stands in the joined one."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, values: np.ndarray) -> slice:
        start = self._size
        self._parts.append(np.asarray(values, dtype=np.int32))
        self._size += len(values)
        return slice(start, self._size)

    def joined(self) -> np.ndarray:
        return np.concatenate(self._parts)


def _with_longest(lengths: np.ndarray, longest: int) -> np.ndarray:
    return np.concatenate(([longest], lengths[1:]))


@dataclass(frozen=True)
class _Keys:
    """Slices of one ``KeySequences`` in the buffer."""

    rows: slice
    cu_seqlens: slice
    lengths: np.ndarray
    prompt_rows: int
    fillers: int

    def view(self, buffer: torch.Tensor) -> KeySequences:
        return KeySequences(
            buffer[self.rows], buffer[self.cu_seqlens], self.lengths, self.prompt_rows, self.fillers
        )


@dataclass(frozen=True)
class _Sequences:
    """Slices of one ``PackedSequences`` in the buffer."""

    token_ids: slice
    position_ids: slice
    cu_seqlens: slice
    lengths: np.ndarray
    fillers: int
    keys: _Keys | None = None

    def with_longest(self, longest: int) -> _Sequences:
        lengths = _with_longest(self.lengths, longest)
        keys = self.keys
        if keys is not None:
            longest += keys.prompt_rows
            keys = replace(keys, lengths=_with_longest(keys.lengths, longest))
        return replace(self, lengths=lengths, keys=keys)

    def view(self, buffer: torch.Tensor) -> PackedSequences:
        return PackedSequences(
            buffer[self.token_ids],
            buffer[self.position_ids],
            buffer[self.cu_seqlens],
            self.lengths,
            self.fillers,
            None if self.keys is None else self.keys.view(buffer),
        )


@dataclass(frozen=True)
class HostBatch:
    """A batch on the host: one buffer, and where everything stands in it.

    Attributes:
        buffer: int32, what travels to the device.
        num_texts: texts in it, those that fill it up not counted.
        prompt: the rows that all sequences begin with and that are not in it.
        shape: what it was filled up to, or None.
    """

    buffer: np.ndarray
    num_texts: int
    prompt: tuple[int, ...]
    shape: BatchShape | None
    _decoder: _Sequences
    _passes: tuple[tuple[_Sequences, slice | None, slice], ...]
    _encoder_counts: slice
    _pooled_rows: slice
    _pooled_offsets: slice

    def with_longest_sequences(self) -> HostBatch:
        """As if it held the longest sequences of its shape, for a graph that will replay any.

        Only the lengths on the host change, by which launches are made; not the buffer.
        """
        shape = self.shape
        assert shape is not None
        passes = tuple(
            (part.with_longest(shape.encoder_longest), rows, offsets)
            for part, rows, offsets in self._passes
        )
        decoder = self._decoder.with_longest(shape.longest)
        return replace(self, _decoder=decoder, _passes=passes)

    def on(self, tensor: torch.Tensor) -> PackedBatch:
        """The batch whose buffer is a tensor that holds, or will hold, this one's."""
        return PackedBatch(
            tensor,
            self._decoder.view(tensor),
            tuple(
                EncoderInput(
                    part.view(tensor), None if rows is None else tensor[rows], tensor[offsets]
                )
                for part, rows, offsets in self._passes
            ),
            tensor[self._encoder_counts],
            tensor[self._pooled_rows],
            tensor[self._pooled_offsets],
        )


def lay_out(
    texts: Sequence[TokenizedText],
    rules: PackingRules,
    batch_tokens: int,
    rounding: Rounding,
    prompt: tuple[int, ...] = (),
    shape: BatchShape | None = None,
) -> HostBatch:
    """Lay texts end to end.

    Args:
        texts: at least one.
        rules: of the checkpoint.
        batch_tokens: most tokens of one encoder pass.
        rounding: of row counts.
        prompt: ids of the rows that all of the texts begin with; left out.
        shape: to fill up to, where single rows are pooled; wins over the rounding.
    """
    buffer = _Buffer()
    added = 0 if shape is None else shape.texts - len(texts)
    sequences = [_marked(text, number, rules, len(prompt)) for number, text in enumerate(texts)]
    sequences += [_PADDING_TOKEN] * added
    if shape is None:
        fillers = _rounding_fillers(sequences, rounding)
    else:
        fillers = _shape_fillers(sequences, shape.decoder_tokens, shape.longest)
    decoder = _add_sequences(buffer, sequences, fillers, len(prompt), rules.alone)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    rows, offsets = _pooled(texts, rules, lengths, len(prompt), added)
    pooled_rows, pooled_offsets = buffer.add(rows), buffer.add(offsets)
    windows = [(number, window) for number, text in enumerate(texts) for window in text.windows]
    if windows and shape is not None:
        windows += [(number, _PADDING_TOKEN) for number in range(len(texts), shape.texts)]
    counts = [
        len(text.windows) if rules.encoder_pooling == "cls" else text.encoder_tokens
        for text in texts
    ] + [1] * added
    passes = _encoder_passes(
        buffer, windows, len(texts) + added, rules.encoder_pooling, batch_tokens, rounding, shape
    )
    encoder_counts = buffer.add(np.array(counts, dtype=np.int64))
    return HostBatch(
        buffer.joined(),
        len(texts),
        prompt,
        shape,
        decoder,
        tuple(passes),
        encoder_counts,
        pooled_rows,
        pooled_offsets,
    )


def _marked(text: TokenizedText, number: int, rules: PackingRules, prompt_rows: int) -> np.ndarray:
    """The decoder's ids of a text: negative where a contextual or a summary token stands."""
    token_ids: np.ndarray = text.token_ids[prompt_rows:].copy()
    summary = rules.summary_tokens
    for entry in rules.context_entries:
        token_ids[text.bounds[entry] - prompt_rows] = -1 - summary - number
    if summary:
        token_ids[-summary:] = -1 - np.arange(summary)
    return token_ids


def _rounding_fillers(sequences: list[np.ndarray], rounding: Rounding) -> list[int]:
    """Lengths of sequences, none longer than a real one, that round the number of tokens up."""
    lengths = [len(sequence) for sequence in sequences]
    tokens = sum(lengths)
    return in_pieces(rounding.tokens(tokens) - tokens, max(lengths))


def _shape_fillers(sequences: list[np.ndarray], tokens: int, longest: int) -> list[int]:
    """Lengths of sequences, as many whatever is missing, that fill up to a number of tokens."""
    pieces = in_pieces(tokens - sum(len(sequence) for sequence in sequences), longest)
    slots = -(-tokens // longest)
    assert len(pieces) <= slots, (pieces, tokens, longest)
    return pieces + [0] * (slots - len(pieces))


def _add_sequences(
    buffer: _Buffer,
    sequences: list[np.ndarray],
    fillers: list[int],
    prompt_rows: int = 0,
    alone: int = 0,
) -> _Sequences:
    real = [len(sequence) for sequence in sequences]
    sequences = [*sequences, *(np.zeros(length, dtype=np.int32) for length in fillers)]
    lengths = np.array([*real, *fillers], dtype=np.int64)
    positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    seen = np.zeros_like(lengths)
    if alone:
        lengths, seen = _apart(np.array(real, dtype=np.int64), alone, np.array(fillers, np.int64))
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    keys = None
    if prompt_rows or alone:
        keys = _add_keys(buffer, cu_seqlens, seen, prompt_rows, len(fillers))
    return _Sequences(
        buffer.add(np.concatenate(sequences)),
        buffer.add(positions + prompt_rows),
        buffer.add(cu_seqlens),
        lengths,
        len(fillers),
        keys,
    )


def _apart(real: np.ndarray, alone: int, fillers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of their own for the last rows of every text.

    Returns:
        The length of every sequence, and how many rows of its text it sees that stand before it.
    """
    before = real - alone
    lengths = np.ones((len(real), 1 + alone), dtype=np.int64)
    lengths[:, 0] = before
    seen = np.repeat(before[:, None], 1 + alone, axis=1)
    seen[:, 0] = 0
    some = lengths.reshape(-1) > 0  # an empty text is no sequence
    none_seen = np.zeros_like(fillers)
    return (
        np.concatenate((lengths.reshape(-1)[some], fillers)),
        np.concatenate((seen.reshape(-1)[some], none_seen)),
    )


def _add_keys(
    buffer: _Buffer, cu_seqlens: np.ndarray, seen: np.ndarray, prompt_rows: int, fillers: int
) -> _Keys:
    """The keys of sequences: of a prompt, of the rows of their text that they see, their own."""
    lengths = prompt_rows + seen + np.diff(cu_seqlens)
    cu_keys = np.concatenate(([0], np.cumsum(lengths)))
    place = np.arange(cu_keys[-1]) - np.repeat(cu_keys[:-1], lengths)
    # A text stands before its summary tokens, which are one row each.
    text = np.flatnonzero(seen == 0)
    of_text = text[np.searchsorted(text, np.arange(len(seen)), side="right") - 1]
    first_seen = np.where(seen > 0, cu_seqlens[of_text], 0)
    first_own = cu_seqlens[:-1] - prompt_rows - seen
    rows = np.where(
        place < np.repeat(prompt_rows + seen, lengths),
        np.repeat(first_seen, lengths) + place - prompt_rows,
        np.repeat(first_own, lengths) + place,
    )
    rows = np.where(place < prompt_rows, -1 - place, rows)
    return _Keys(buffer.add(rows), buffer.add(cu_keys), lengths, prompt_rows, fillers)


def _pooled(
    texts: Sequence[TokenizedText],
    rules: PackingRules,
    lengths: np.ndarray,
    prompt_rows: int,
    added: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The pooled rows, and where each segment's begin; a text that fills up pools its one row."""
    starts = np.cumsum(lengths) - lengths
    ranges = [
        (start + first - prompt_rows, start + end - prompt_rows)
        for start, text in zip(starts, texts, strict=False)
        for first, end in (rules.pooled_range(text, entry) for entry in rules.pooled)
    ]
    ranges += [
        (start, start + 1)
        for start in starts[len(texts) : len(texts) + added]
        for _ in rules.pooled
    ]
    first, end = np.array(ranges, dtype=np.int64).T
    sizes = end - first
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], sizes), offsets


def _encoder_passes(
    buffer: _Buffer,
    windows: list[tuple[int, np.ndarray]],
    texts: int,
    pooling: EncoderPooling,
    batch_tokens: int,
    rounding: Rounding,
    shape: BatchShape | None,
) -> list[tuple[_Sequences, slice | None, slice]]:
    """Windows of all texts, cut into passes of at most ``batch_tokens`` tokens."""
    passes = []
    begin = 0
    while begin < len(windows):
        end = len(windows)
        if shape is None:
            end = _pass_end(windows, begin, batch_tokens, whole_texts=bool(rounding.block_rows))
        numbers = [number for number, _ in windows[begin:end]]
        chosen = [window for _, window in windows[begin:end]]
        if shape is None:
            fillers = _rounding_fillers(chosen, rounding)
        else:
            fillers = _shape_fillers(chosen, shape.encoder_tokens, shape.encoder_longest)
        sequences = _add_sequences(buffer, chosen, fillers)
        lengths = sequences.lengths[: len(chosen)]
        rows: slice | None = None
        if pooling == "cls":
            rows = buffer.add(np.cumsum(lengths) - lengths)
            lengths = np.ones_like(lengths)
        counts = np.zeros(texts, dtype=np.int64)
        np.add.at(counts, numbers, lengths)
        offsets = buffer.add(np.concatenate(([0], np.cumsum(counts))))
        passes.append((sequences, rows, offsets))
        begin = end
    return passes


def _pass_end(
    windows: list[tuple[int, np.ndarray]], begin: int, batch_tokens: int, *, whole_texts: bool
) -> int:
    """Where a pass ends.

    Args:
        windows: of all texts, each with its text's number.
        begin: the pass's first.
        batch_tokens: most tokens of a pass, but for its first window or text.
        whole_texts: whether a text's windows stay together, so that its neighbours do not decide in
            which order its states are added up.
    """
    end, tokens = begin, 0
    while end < len(windows):
        number = windows[end][0]
        last = end + 1
        while whole_texts and last < len(windows) and windows[last][0] == number:
            last += 1
        tokens += sum(len(window) for _, window in windows[end:last])
        if end > begin and tokens > batch_tokens:
            break
        end = last
    return end
