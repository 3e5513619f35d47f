"""Our own CPU kernel on packed sequences: no padding and no gather."""

from __future__ import annotations

from typing import ClassVar

import torch

from c2v_engine.kernels.dual_token_pool import extension_status
from c2v_engine.kernels.packed_attention import MAX_HEAD_DIM, CpuVariant, cpu_variant
from c2v_engine.model.attention.packed import PackedBackend


class PackedCpuAttention(PackedBackend):
    """``c2v_engine.kernels.packed_attention``, compiled for this CPU's vector instructions."""

    name: ClassVar[str] = "packed_cpu"

    def make_deterministic(self) -> str | None:
        """It always is."""
        return None

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
