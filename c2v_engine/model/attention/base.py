"""What every attention backend does: plan a batch once, then attend in each layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from c2v_engine.kernels._triton import triton_serves
from c2v_engine.kernels.packed_attention import MAX_HEAD_DIM, packed_attention
from c2v_engine.model.packed_batch import KeySequences, PackedSequences


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query sees, within its own sequence.

    Attributes:
        causal: only itself and what stands before it.
        window: a sliding window in tokens: query i sees key j only where ``|i - j| < window``.
            None for no window.
    """

    causal: bool
    window: int | None = None

    def for_length(self, max_seqlen: int) -> AttentionMask:
        """The same mask without a window that no sequence of that length reaches."""
        if self.window is not None and self.window >= max_seqlen:
            return AttentionMask(self.causal)
        return self

    @property
    def window_size(self) -> tuple[int, int]:
        """``(left, right)`` as the FlashAttention interfaces take it; -1 is unbounded."""
        left = -1 if self.window is None else self.window - 1
        return left, (0 if self.causal else left)


@dataclass(frozen=True)
class PackedPlan:
    """Arguments that the layers of a batch share.

    Attributes:
        cu_seqlens: int32 ``[sequences + 1]`` on the device: of keys.
        max_seqlen: on the host: of keys.
        mask: what a query sees.
        cu_seqlens_q: likewise of queries, the last rows of their keys' sequence; None where every
            key has a query.
        max_seqlen_q: likewise.
        rows: int32 ``[rows]``: packed rows of the queries' keys; None where all rows are queries.
        bounds: of ``row_bounds``, or None.
        num_keys: where rows are chosen, the keys of all sequences; more may stand behind them.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    mask: AttentionMask
    cu_seqlens_q: torch.Tensor | None = None
    max_seqlen_q: int = 0
    rows: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    num_keys: int | None = None

    @classmethod
    def of(
        cls, sequences: PackedSequences, mask: AttentionMask, bounds: torch.Tensor | None = None
    ) -> PackedPlan:
        """The plan for all rows of packed sequences."""
        keys = sequences.attended
        return cls(
            keys.cu_seqlens,
            keys.max_seqlen,
            mask,
            None if sequences.keys is None else sequences.cu_seqlens,
            sequences.max_seqlen,
            bounds=bounds,
        )

    @classmethod
    def of_rows(
        cls, keys: PackedSequences | KeySequences, rows: torch.Tensor, mask: AttentionMask
    ) -> PackedPlan:
        """The plan for chosen rows."""
        return cls(keys.cu_seqlens, keys.max_seqlen, mask, rows=rows, num_keys=keys.num_tokens)

    @property
    def query_cu_seqlens(self) -> torch.Tensor:
        """Of the queries, whether or not they are fewer than the keys."""
        return self.cu_seqlens if self.cu_seqlens_q is None else self.cu_seqlens_q


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: PackedPlan, scale: float
) -> torch.Tensor:
    """Attends by our own kernels, ``c2v_engine.kernels.packed_attention``.

    For chosen rows there may be keys behind the last sequence, of no text. Triton's kernel reads
    none of these, and a graph may not cut them off: how many there are changes between replays.
    """
    if plan.num_keys is not None and not triton_serves(key.device):
        key, value = key[: plan.num_keys], value[: plan.num_keys]
    return packed_attention(
        query,
        key,
        value,
        plan.cu_seqlens,
        max_seqlen=plan.max_seqlen,
        causal=plan.mask.causal,
        window=plan.mask.window,
        scale=scale,
        query_rows=plan.rows,
        row_bounds=plan.bounds,
        cu_seqlens_q=plan.cu_seqlens_q,
        validate=False,  # the packing made the offsets; reading them would wait for the device
    )


@dataclass(frozen=True)
class RowsPlan:
    """Chosen rows of packed sequences, for whatever can attend from them.

    Attributes:
        keys: the packed sequences that they attend to.
        rows: int32 ``[rows]``: where the queries' own keys stand, as many of every sequence.
        mask: what a query sees.
    """

    keys: PackedSequences | KeySequences
    rows: torch.Tensor
    mask: AttentionMask


class AttentionBackend(ABC):
    """One way to compute softmax(Q K^T * scale + mask) V over packed sequences.

    Attributes:
        name: that ``attention=`` takes.
        capturable: whether a CUDA graph can hold it: its launches depend on no length but the
            longest.
        max_keys: most key rows that ``attend_rows`` gathers at a time where PyTorch serves it.
    """

    name: ClassVar[str]
    capturable: bool = False
    max_keys: int = 16384

    @classmethod
    @abstractmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why this backend can not serve here, or None where it can."""

    def make_deterministic(self) -> str | None:
        """Have a row's result depend on nothing but its sequence, to the bit; or say why not."""
        return "what a row gives may depend on the batch around it"

    @abstractmethod
    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> Any:
        """Work out once per batch what every layer with this mask shares."""

    @abstractmethod
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Any, scale: float
    ) -> torch.Tensor:
        """Attend from every row.

        Args:
            query: ``[tokens, heads, D]``.
            key: ``[keys, kv_heads, D]``: of the tokens, or of the longer ``sequences.keys``.
            value: likewise.
            plan: what ``plan`` gave for these sequences.
            scale: factor of the logits.

        Returns:
            ``[tokens, heads, D]``.
        """

    def plan_rows(
        self, keys: PackedSequences | KeySequences, rows: torch.Tensor, mask: AttentionMask
    ) -> Any:
        """Work out what ``attend_rows`` needs.

        Args:
            keys: the packed sequences that are attended to.
            rows: int32 ``[rows]``: where the queries' own keys stand, as many of every sequence,
                sequence by sequence.
            mask: what a query sees.
        """
        return RowsPlan(keys, rows, mask)

    def attend_rows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Any, scale: float
    ) -> torch.Tensor:
        """Attend from chosen rows only, as the last layer does for the pooled ones.

        Where Triton serves its kernel for chosen rows does, else PyTorch on gathered keys.

        Args:
            query: ``[rows, heads, D]``.
            key: ``[tokens, kv_heads, D]``; what stands behind the last sequence is not read.
            value: likewise.
            plan: what ``plan_rows`` gave for these rows.
            scale: factor of the logits.

        Returns:
            ``[rows, heads, D]``.
        """
        assert isinstance(plan, RowsPlan)
        if triton_serves(query.device) and query.shape[-1] <= MAX_HEAD_DIM:
            packed = PackedPlan.of_rows(plan.keys, plan.rows, plan.mask)
            return attend_packed(query, key, value, packed, scale)
        queries = RowQueries(plan.keys, plan.rows, plan.mask, self.max_keys)
        return queries.attend(query, key, value, scale)


class RowQueries:
    """Queries of a few rows of every sequence against the keys of that sequence.

    Keys are gathered into chunks padded to their longest sequence, which costs little: it happens
    in one layer, and neighbours in a batch are of like length.

    Args:
        sequences: the packed sequences.
        rows: int32 ``[sequences * n]``: packed rows of the queries, n of each sequence.
        mask: what a query sees.
        max_keys: most key rows gathered at a time.
    """

    def __init__(
        self,
        sequences: PackedSequences | KeySequences,
        rows: torch.Tensor,
        mask: AttentionMask,
        max_keys: int = 16384,
    ) -> None:
        lengths = sequences.lengths.tolist()
        self.per_sequence = rows.shape[0] // max(len(lengths), 1)
        starts = sequences.cu_seqlens[:-1].long()[:, None]
        device_lengths = sequences.cu_seqlens[1:].long()[:, None] - starts
        positions = rows.view(-1, self.per_sequence).long() - starts
        self._chunks: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
        begin = 0
        while begin < len(lengths):
            end, longest = _chunk_end(lengths, begin, max_keys)
            keys = torch.arange(longest, device=rows.device)
            length = device_lengths[begin:end]
            gather = starts[begin:end] + torch.minimum(keys, length - 1)
            position = positions[begin:end, :, None]
            visible = (keys < length)[:, None, :].expand(-1, self.per_sequence, -1)
            if mask.causal:
                visible = visible & (keys <= position)
            if mask.window is not None:
                visible = visible & ((keys - position).abs() < mask.window)
            self._chunks.append((begin, end, gather, visible))
            begin = end

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """What ``AttentionBackend.attend_rows`` says."""
        n, kv_heads = self.per_sequence, key.shape[1]
        groups = query.shape[1] // kv_heads
        output = torch.empty_like(query)
        for begin, end, gather, visible in self._chunks:
            # The query heads of one key head stand side by side as rows of one product.
            q = query[begin * n : end * n].view(end - begin, n, kv_heads, groups, -1)
            q = q.permute(0, 2, 1, 3, 4).flatten(2, 3)
            k = key[gather].permute(0, 2, 3, 1)
            v = value[gather].transpose(1, 2)
            logits = (q @ k).float().unflatten(2, (n, groups)) * scale
            logits = logits.masked_fill(~visible[:, None, :, None, :], float("-inf"))
            weights = torch.softmax(logits, dim=-1).to(v.dtype).flatten(2, 3)
            attended = (weights @ v).unflatten(2, (n, groups)).permute(0, 2, 1, 3, 4)
            output[begin * n : end * n] = attended.reshape((end - begin) * n, *query.shape[1:])
        return output


def _chunk_end(lengths: list[int], begin: int, max_keys: int) -> tuple[int, int]:
    """How many sequences from ``begin`` on fit, and the longest of them."""
    end, longest = begin + 1, lengths[begin]
    while end < len(lengths):
        candidate = max(longest, lengths[end])
        if candidate * (end + 1 - begin) > max_keys:
            break
        end, longest = end + 1, candidate
    return end, longest
