"""The ``flash-attn`` package, version 3."""

from __future__ import annotations

from typing import ClassVar

import torch

from c2v_engine.model.attention.base import PackedPlan
from c2v_engine.model.attention.varlen import VarlenBackend, why_not_importable


class FlashAttention3(VarlenBackend):
    """``flash_attn_interface.flash_attn_varlen_func``."""

    name: ClassVar[str] = "flash_attn_3"

    @classmethod
    def why_not_installed(cls) -> str | None:
        """It is a package of its own."""
        return why_not_importable("flash_attn_interface", "flash-attn 3 (flash_attn_interface)")

    @classmethod
    def why_not_on(cls, capability: tuple[int, int]) -> str | None:
        """Version 3 is written for Hopper."""
        return None if capability[0] == 9 else f"needs compute capability 9.x, not {capability}"

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: PackedPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        from flash_attn_interface import flash_attn_varlen_func

        # Early releases give the log-sum-exp beside the output.
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
            window_size=plan.mask.window_size,
        )
        return output[0] if isinstance(output, tuple) else output
