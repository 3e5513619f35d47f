"""What one batch looks like to the model: packed sequences, no padding, one buffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class KeySequences:
    """Keys of sequences that see more than themselves.

    They may all begin with the same prompt, which was computed before, and summary tokens each see
    the sequence of their text. The queries of a sequence are its last rows.

    Attributes:
        rows: int32 ``[keys]``: the packed row that each key is computed from; ``-1 - j`` stands for
            row j of the prompt.
        cu_seqlens: int32 ``[sequences + 1]``: where each sequence's keys begin, on the device.
        lengths: int ``[sequences]`` on the host: keys of each.
        prompt_rows: how many keys of each are the prompt's.
        fillers: how many of the last sequences belong to no text.
    """

    rows: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: np.ndarray
    prompt_rows: int
    fillers: int = 0

    @property
    def num_tokens(self) -> int:
        """Keys of all sequences."""
        return self.rows.shape[0]

    @property
    def max_seqlen(self) -> int:
        """Keys of the longest sequence."""
        return int(self.lengths.max(initial=0))

    def without_fillers(self) -> KeySequences:
        """The sequences that belong to texts."""
        if not self.fillers:
            return self
        lengths = self.lengths[: -self.fillers]
        rows = self.rows[: int(lengths.sum())]
        return KeySequences(rows, self.cu_seqlens[: -self.fillers], lengths, self.prompt_rows)

    def places(self, rows: torch.Tensor) -> torch.Tensor:
        """Where the keys of packed rows stand, of which every sequence has as many.

        Args:
            rows: int32 ``[sequences * n]``, fillers not counted.
        """
        sequences = len(self.lengths) - self.fillers
        before = torch.arange(1, sequences + 1, dtype=torch.int32, device=rows.device)
        return (rows.view(sequences, -1) + self.prompt_rows * before[:, None]).view(-1)


@dataclass(frozen=True)
class PackedSequences:
    """Token sequences end to end.

    Attributes:
        token_ids: int32 ``[tokens]``; in the decoder's, ``-1 - j`` stands for summary token j of k,
            and ``-1 - k - t`` for the contextual token of text t.
        position_ids: int32 ``[tokens]``, each text counting from 0, or from the number of rows of
            its shared prompt.
        cu_seqlens: int32 ``[sequences + 1]``: where each begins, on the device.
        lengths: int ``[sequences]`` on the host, so that nothing asks the device.
        fillers: how many of the last sequences belong to no text (see ``rounding``).
        keys: what the rows attend to, where that is more than themselves.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: np.ndarray
    fillers: int = 0
    keys: KeySequences | None = None

    def without_fillers(self) -> PackedSequences:
        """The sequences that belong to texts."""
        if not self.fillers:
            return self
        lengths = self.lengths[: -self.fillers]
        tokens = int(lengths.sum())
        return PackedSequences(
            self.token_ids[:tokens],
            self.position_ids[:tokens],
            self.cu_seqlens[: -self.fillers],
            lengths,
            keys=None if self.keys is None else self.keys.without_fillers(),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return self.token_ids.shape[0]

    @property
    def max_seqlen(self) -> int:
        """The longest sequence."""
        return int(self.lengths.max(initial=0))

    @property
    def attended(self) -> PackedSequences | KeySequences:
        """What the rows attend to: their own sequences, or longer ones."""
        return self if self.keys is None else self.keys


@dataclass(frozen=True)
class EncoderInput:
    """What the encoder reads in one pass: windows, one or more for each text.

    Attributes:
        sequences: the packed windows.
        rows: int32 ``[rows]``: the token states that are averaged; None for all of them.
        offsets: int32 ``[texts + 1]``: where each text's rows begin; it may have none in this pass.
    """

    sequences: PackedSequences
    rows: torch.Tensor | None
    offsets: torch.Tensor


@dataclass(frozen=True)
class PackedBatch:
    """One batch of texts; every tensor is a view of ``buffer``.

    Attributes:
        buffer: int32, everything that travels to the device, in one copy.
        decoder: the decoder's sequences.
        encoder: passes of the encoder, none for templates without ``<context>``. More than one
            only where texts are read in so many windows that they exceed the token budget.
        encoder_counts: int32 ``[texts]``: how many encoder states each text averages.
        pooled_rows: int32 ``[pooled]``: decoder rows that the embedding reads, in its order.
        pooled_offsets: int32 ``[texts * segments + 1]``: where each segment's rows begin.
    """

    buffer: torch.Tensor
    decoder: PackedSequences
    encoder: tuple[EncoderInput, ...]
    encoder_counts: torch.Tensor
    pooled_rows: torch.Tensor
    pooled_offsets: torch.Tensor

    @property
    def num_texts(self) -> int:
        """Texts in the batch."""
        return self.encoder_counts.shape[0]
