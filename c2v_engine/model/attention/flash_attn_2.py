"""The ``flash-attn`` package, version 2."""

from __future__ import annotations

from typing import ClassVar

import torch

from c2v_engine.model.attention.base import PackedPlan
from c2v_engine.model.attention.varlen import (
    NEVER_SINGLE,
    VarlenBackend,
    why_not_importable,
)


class FlashAttention2(VarlenBackend):
    """``flash_attn.flash_attn_varlen_func``."""

    name: ClassVar[str] = "flash_attn_2"

    def make_deterministic(self) -> str | None:
        """Blocks begin where a sequence does, and no two programs share its keys."""
        self.shortest = NEVER_SINGLE
        return None

    @classmethod
    def why_not_installed(cls) -> str | None:
        """It is a package of its own."""
        # flash-attn-4 shares the package's name but has no such function of its own.
        return why_not_importable("flash_attn.flash_attn_interface", "flash-attn")

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: PackedPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        from flash_attn import flash_attn_varlen_func

        output: torch.Tensor = flash_attn_varlen_func(
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
        return output
