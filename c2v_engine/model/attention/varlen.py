"""What the FlashAttention backends share: their limits."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from dataclasses import replace

import torch

from c2v_engine.model.attention.base import AttentionBackend, AttentionMask, PackedPlan
from c2v_engine.model.packed_batch import PackedSequences

_MAX_HEAD_DIM = 256
# Version 2 computes a batch whose sequences all have one query by another order of loops.
NEVER_SINGLE = 2


class VarlenBackend(AttentionBackend):
    """FlashAttention (arXiv 2205.14135, 2307.08691) on packed sequences: no padding, one launch.

    Attributes:
        shortest: the longest sequence is said to be at least that long.
    """

    capturable = True
    shortest: int = 0

    @classmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """FlashAttention needs CUDA, half precision and heads of at most 256."""
        if device.type != "cuda":
            return "needs a CUDA GPU"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
        if head_dim > _MAX_HEAD_DIM or head_dim % 8:
            return f"needs a head size that 8 divides, up to {_MAX_HEAD_DIM}, not {head_dim}"
        return cls.why_not_installed() or cls.why_not_on(torch.cuda.get_device_capability(device))

    @classmethod
    @abstractmethod
    def why_not_installed(cls) -> str | None:
        """Why the library behind it is not there, or None where it is."""

    @classmethod
    def why_not_on(cls, capability: tuple[int, int]) -> str | None:
        """Why a GPU of that compute capability can not run it, or None where it can."""
        return None if capability >= (8, 0) else f"needs compute capability 8.0, not {capability}"

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> PackedPlan:
        """Nothing to work out but whether the window matters."""
        plan = PackedPlan.of(sequences, mask)
        return replace(plan, max_seqlen_q=max(plan.max_seqlen_q, self.shortest))


def why_not_importable(module: str, package: str) -> str | None:
    """Why a module can not be imported, or None where it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return f"{package} is not installed"
        return f"{package} is installed but can not be imported: {error}"
    except Exception as error:  # a binary that does not fit raises many kinds
        return f"{package} is installed but can not be imported: {' '.join(str(error).split())}"
    return None
