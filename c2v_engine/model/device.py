"""Which device and dtype a model runs in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from c2v_engine.errors import BackendError
from c2v_engine.kernels.float8 import FLOAT8_CAPABILITY
from c2v_engine.kernels.linear_int8 import why_not_int8

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


def made_current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which a GPU is the current one, of which events, pools and streams are made."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX-512 BF16, AMX or Arm BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.12
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_dtype(
    name: str, device: torch.device, stored_dtype: torch.dtype
) -> tuple[torch.dtype, WeightsDtype]:
    """The dtype of hidden states for that name, and what the decoder's linear layers multiply in.

    ``auto`` is bfloat16 on CUDA, or float16 where the GPU has no bfloat16; on a CPU bfloat16 only
    if the checkpoint is stored in it and the CPU has the instructions, else float32. ``float8`` is
    for GPUs of compute capability 8.9 and ``int8`` for CPUs: 8 bits in the decoder's linear layers,
    and around them bfloat16 (float32 on a CPU without it).

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
    if name == "float8":
        _refuse("float8", device, why_not_float8(device))
        return torch.bfloat16, "float8"
    if name == "int8":
        reason = why_not_int8() if device.type == "cpu" else "it is for CPUs; a GPU has float8"
        _refuse("int8", device, reason)
        return (torch.bfloat16 if cpu_has_bfloat16() else torch.float32), "int8"
    raise BackendError(f"dtype is {name!r}, expected auto, {', '.join(DTYPES)}, float8 or int8")


def _refuse(name: str, device: torch.device, reason: str | None) -> None:
    if reason is not None:
        raise BackendError(f"dtype {name!r} can not be used on {device}: {reason}")


def why_not_float8(device: torch.device) -> str | None:
    """Why a device can not multiply in float8, or None where it can."""
    if device.type != "cuda":
        return "it needs a CUDA GPU of compute capability 8.9; a CPU has int8"
    capability = torch.cuda.get_device_capability(device)
    if capability < FLOAT8_CAPABILITY:
        return f"it needs compute capability 8.9, this GPU has {capability[0]}.{capability[1]}"
    return None
