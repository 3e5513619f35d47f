"""FlashAttention varlen as torch ships it: ``torch.nn.attention.varlen``."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, ClassVar

import torch

from c2v_engine.model.attention.base import PackedPlan
from c2v_engine.model.attention.varlen import (
    NEVER_SINGLE,
    VarlenBackend,
    why_not_importable,
)


@cache
def _takes_enable_gqa() -> bool:
    """Whether this torch's ``varlen_attn`` takes fewer key than query heads; 2.11 does not say."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


class TorchVarlenAttention(VarlenBackend):
    """``torch.nn.attention.varlen.varlen_attn``."""

    name: ClassVar[str] = "torch_varlen"

    def make_deterministic(self) -> str | None:
        """Blocks begin where a sequence does, and no two programs share its keys."""
        self.shortest = NEVER_SINGLE
        return None

    @classmethod
    def why_not_installed(cls) -> str | None:
        """It is part of torch, where torch was built with FlashAttention."""
        if not torch.backends.cuda.is_flash_attention_available():
            return "this torch was built without FlashAttention"
        return why_not_importable("torch.nn.attention.varlen", "torch.nn.attention.varlen")

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: PackedPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {"scale": scale, "window_size": plan.mask.window_size}
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and _takes_enable_gqa():
            options["enable_gqa"] = True
        elif groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        output = varlen_attn(
            query,
            key,
            value,
            plan.query_cu_seqlens,
            plan.cu_seqlens,
            plan.max_seqlen_q,
            plan.max_seqlen,
            **options,
        )
        assert isinstance(output, torch.Tensor)  # a pair only where the log-sum-exp is asked for
        return output
