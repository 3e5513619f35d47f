"""Choosing the attention backend, with the reason why not the others."""

from __future__ import annotations

import torch

from c2v_engine.errors import BackendError
from c2v_engine.model.attention.base import AttentionBackend
from c2v_engine.model.attention.flash_attn_2 import FlashAttention2
from c2v_engine.model.attention.flash_attn_3 import FlashAttention3
from c2v_engine.model.attention.flash_attn_4 import FlashAttention4
from c2v_engine.model.attention.packed_cpu import PackedCpuAttention
from c2v_engine.model.attention.sdpa import SdpaAttention
from c2v_engine.model.attention.torch_varlen import TorchVarlenAttention

BACKENDS: dict[str, type[AttentionBackend]] = {
    backend.name: backend
    for backend in (
        PackedCpuAttention,
        TorchVarlenAttention,
        FlashAttention2,
        FlashAttention3,
        FlashAttention4,
        SdpaAttention,
    )
}


def select_attention(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> AttentionBackend:
    """Make the backend of that name; ``auto`` is the first that can serve.

    torch's built-in kernel goes first on CUDA because it is always there: no measurement has
    ranked the others yet.

    Raises:
        BackendError: an unknown name, or a backend that can not serve here, with the reason.
    """
    if name == "auto":
        for backend in BACKENDS.values():
            if backend.why_not(device, dtype, head_dim) is None:
                return backend()
        raise AssertionError("sdpa serves everywhere")  # pragma: no cover
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise BackendError(f"attention is {name!r}, expected one of {known}")
    reason = BACKENDS[name].why_not(device, dtype, head_dim)
    if reason is not None:
        raise BackendError(f"attention {name!r} can not be used here: {reason}")
    return BACKENDS[name]()
