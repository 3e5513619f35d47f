"""The ``flash-attn`` package, version 4."""

from __future__ import annotations

from typing import ClassVar

import torch

from c2v_engine.model.attention.base import PackedPlan
from c2v_engine.model.attention.varlen import VarlenBackend, why_not_importable


class FlashAttention4(VarlenBackend):
    """``flash_attn.cute.flash_attn_varlen_func``."""

    name: ClassVar[str] = "flash_attn_4"

    @classmethod
    def why_not_installed(cls) -> str | None:
        """It is a package of its own."""
        return why_not_importable("flash_attn.cute", "flash-attn-4")

    @classmethod
    def why_not_on(cls, capability: tuple[int, int]) -> str | None:
        """Version 4 is written for Hopper and later."""
        return None if capability[0] >= 9 else f"needs compute capability 9.0, not {capability}"

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: PackedPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        from flash_attn.cute import flash_attn_varlen_func

        left, right = plan.mask.window_size
        output: torch.Tensor | tuple[torch.Tensor, ...] = flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=plan.query_cu_seqlens,
            cu_seqlens_k=plan.cu_seqlens,
            max_seqlen_q=plan.max_seqlen_q,
            max_seqlen_k=plan.max_seqlen,
            softmax_scale=scale,
            causal=plan.mask.causal,
            # None is unbounded here, and no window at all lets the causal path be taken.
            window_size=(None, None) if left < 0 else (left, right),
        )
        return output[0] if isinstance(output, tuple) else output
