"""Choosing the attention backend, with the reason why not the others."""

from __future__ import annotations

import torch

from c2v_engine.errors import BackendError
from c2v_engine.model.attention.base import AttentionBackend
from c2v_engine.model.attention.flash_attn_2 import FlashAttention2
from c2v_engine.model.attention.flash_attn_3 import FlashAttention3
from c2v_engine.model.attention.flash_attn_4 import FlashAttention4
from c2v_engine.model.attention.measured import Gpu, Heads, measured_attention, read_table
from c2v_engine.model.attention.packed_cpu import PackedCpuAttention
from c2v_engine.model.attention.packed_triton import PackedTritonAttention
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
        PackedTritonAttention,
    )
}
"""All backends. Without a measurement ``auto`` takes the first that can serve; sdpa can everywhere,
so what stands behind it is taken by name or because it was measured to be faster."""


def select_attention(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    group: int | None = None,
    *,
    deterministic: bool = False,
) -> AttentionBackend:
    """Make the backend of that name; ``auto`` is the fastest that can serve, where it was measured.

    Where it was not, torch's built-in kernel goes first on CUDA because it is always there.

    Args:
        name: of a backend, or ``auto``.
        device: where it will run.
        dtype: of queries, keys and values.
        head_dim: the head size.
        group: query heads of a key head. None where no model is known: no measurement is looked up.
        deterministic: whether a row's result may depend on nothing but its sequence.

    Raises:
        BackendError: an unknown name, or a backend that can not serve here, with the reason.
    """

    def usable(name: str) -> AttentionBackend | None:
        backend = BACKENDS.get(name)
        if backend is None or backend.why_not(device, dtype, head_dim) is not None:
            return None
        found = backend()
        return None if deterministic and found.make_deterministic() is not None else found

    if name == "auto":
        found = next(backend for backend in map(usable, BACKENDS) if backend is not None)
        if device.type != "cuda" or group is None or deterministic:
            return found
        heads = Heads(dtype, head_dim, group)
        return measured_attention(read_table(), Gpu.of(device), heads, usable, found)
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise BackendError(f"attention is {name!r}, expected one of {known}")
    reason = BACKENDS[name].why_not(device, dtype, head_dim)
    if reason is not None:
        raise BackendError(f"attention {name!r} can not be used here: {reason}")
    backend = BACKENDS[name]()
    reason = backend.make_deterministic() if deterministic else None
    if reason is not None:
        raise BackendError(f"attention {name!r} can not be deterministic: {reason}")
    return backend
