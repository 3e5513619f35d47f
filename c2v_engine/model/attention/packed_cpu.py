"""Our own CPU kernel on packed sequences: no padding and no gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from c2v_engine.kernels.dual_token_pool import extension_status
from c2v_engine.kernels.packed_attention import (
    MAX_HEAD_DIM,
    CpuVariant,
    cpu_variant,
    packed_attention,
)
from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.packed_batch import PackedSequences


@dataclass(frozen=True)
class PackedPlan:
    """Arguments that the layers of a batch share.

    Attributes:
        cu_seqlens: int32 ``[sequences + 1]``.
        max_seqlen: the longest sequence.
        mask: without a window that nothing reaches.
        rows: int32 ``[rows]``: packed rows of the queries; None where every row is one.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    mask: AttentionMask
    rows: torch.Tensor | None = None


class PackedCpuAttention(AttentionBackend):
    """``c2v_engine.kernels.packed_attention``, compiled for this CPU's vector instructions."""

    name: ClassVar[str] = "packed_cpu"

    @classmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """It needs a CPU, the extension, float32 or bfloat16 and heads of at most 256."""
        if device.type != "cpu":
            return "needs a CPU"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"needs float32 or bfloat16, not {str(dtype).removeprefix('torch.')}"
        if head_dim > MAX_HEAD_DIM:
            return f"needs a head size of at most {MAX_HEAD_DIM}, not {head_dim}"
        status = extension_status()
        if not status.available:
            return f"needs the compiled extension: {status.reason}"
        if cpu_variant(dtype) in (None, CpuVariant.generic):
            return "needs a CPU with AVX2 or AVX-512"
        return None

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> PackedPlan:
        """See the base class."""
        max_seqlen = sequences.max_seqlen
        return PackedPlan(sequences.cu_seqlens, max_seqlen, mask.for_length(max_seqlen))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: PackedPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
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
        )

    def plan_rows(
        self, sequences: PackedSequences, rows: torch.Tensor, mask: AttentionMask
    ) -> PackedPlan:
        """See the base class."""
        max_seqlen = sequences.max_seqlen
        return PackedPlan(sequences.cu_seqlens, max_seqlen, mask.for_length(max_seqlen), rows)

    def attend_rows(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: PackedPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        return self.attend(query, key, value, plan, scale)
