"""Which device and dtype a model runs in."""

from __future__ import annotations

from typing import Literal

import torch

from c2v_engine.errors import BackendError

WeightsDtype = Literal["dtype", "float8", "int8"]
"""What a decoder's linear layers multiply in: the dtype of its hidden states, or 8 bits."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        BackendError: a device that is not there or not supported.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise BackendError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device is {name!r}, but torch finds no CUDA GPU; see c2v doctor")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device is {name!r}, but there are only {torch.cuda.device_count()} GPUs"
        )
    return device


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX-512 BF16, AMX or Arm BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.12
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_dtype(
    name: str, device: torch.device, stored_dtype: torch.dtype
) -> tuple[torch.dtype, WeightsDtype]:
    """The dtype of that name, and what the decoder's linear layers multiply in.

    ``auto`` is bfloat16 on CUDA, or float16 where the GPU has no bfloat16; on a CPU bfloat16 only
    if the checkpoint is stored in it and the CPU has the instructions, else float32.

    Raises:
        BackendError: an unknown name, or one that can not be used on the device.
    """
    if name == "auto":
        if device.type == "cuda":
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return (torch.bfloat16 if has_bfloat16 else torch.float16), "dtype"
        fits = stored_dtype == torch.bfloat16 and cpu_has_bfloat16()
        return (torch.bfloat16 if fits else torch.float32), "dtype"
    if name in DTYPES:
        return DTYPES[name], "dtype"
    raise BackendError(f"dtype is {name!r}, expected auto, {', '.join(DTYPES)}")
