"""Our own Triton kernel on packed sequences: short ones share a tile, and no tile is padded."""

from __future__ import annotations

from typing import ClassVar

import torch

from c2v_engine.kernels._triton import triton_serves, triton_status
from c2v_engine.kernels.packed_attention import MAX_HEAD_DIM, row_bounds
from c2v_engine.model.attention.base import AttentionMask, PackedPlan
from c2v_engine.model.attention.packed import PackedBackend
from c2v_engine.model.packed_batch import PackedSequences

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PackedTritonAttention(PackedBackend):
    """``c2v_engine.kernels.packed_attention`` by its Triton kernels."""

    name: ClassVar[str] = "packed_triton"
    capturable = True

    def make_deterministic(self) -> str | None:
        """Its blocks of keys begin where tiles of the whole batch do."""
        return "it adds a sequence's keys up in blocks that depend on what stands before it"

    @classmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """It needs CUDA, Triton, a floating dtype of the engine and heads of at most 256."""
        if device.type != "cuda":
            return "needs a CUDA GPU"
        if dtype not in _DTYPES:
            return f"needs float32, float16 or bfloat16, not {str(dtype).removeprefix('torch.')}"
        if head_dim > MAX_HEAD_DIM:
            return f"needs a head size of at most {MAX_HEAD_DIM}, not {head_dim}"
        status = triton_status()
        if not status.available:
            return f"needs Triton: {status.reason}"
        if not triton_serves(device):
            capability = torch.cuda.get_device_capability(device)
            return f"needs compute capability 8.0, not {capability}"
        return None

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> PackedPlan:
        """The bounds of every row are worked out here, once for all layers."""
        keys = sequences.attended
        cu_seqlens_q = None if sequences.keys is None else sequences.cu_seqlens
        bounds = row_bounds(keys.cu_seqlens, sequences.num_tokens, cu_seqlens_q)
        return PackedPlan.of(sequences, mask, bounds)
