"""Triton, where it is installed, and what every Triton form of an op shares.

A kernel is decorated with ``jit`` from here, so that its module can be imported without Triton.

Triton takes the annotation ``int`` of a kernel's parameter for 32 bits and cuts what is longer. So
only counts have it; a stride, which may be of any size, is annotated ``tl.tensor`` as pointers are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton, tl = None, None
    _REASON = (
        f"not installed ({error}), the PyTorch form of each op serves on CUDA: pip install triton"
    )
else:
    _REASON = f"version {triton.__version__}"

__all__ = [
    "FP_FUSION",
    "OLDEST_CAPABILITY",
    "TritonStatus",
    "cdiv",
    "jit",
    "next_power_of_2",
    "readable",
    "tl",
    "triton",
    "triton_serves",
    "triton_status",
    "use_device",
]

OLDEST_CAPABILITY = (8, 0)
"""The first compute capability that Triton is made for, and that has bfloat16."""

FP_FUSION = True
"""Passed to every launch: a product and a sum may share one rounding, as in PyTorch's kernels.

Triton's own default differs between releases.
"""


class TritonStatus(NamedTuple):
    """What became of Triton on this machine.

    Attributes:
        available: whether it can be imported.
        reason: its version, or why not and what serves instead.
    """

    available: bool
    reason: str


def triton_status() -> TritonStatus:
    """Whether the Triton kernels can serve, and why not where they can not."""
    return TritonStatus(triton is not None, _REASON)


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``triton.jit``, or where Triton is missing a decorator that leaves the function as it is."""
    if triton is None:
        return lambda function: function
    decorate: Callable[[Callable[..., Any]], Any] = triton.jit(**options)
    return decorate


@cache
def triton_serves(
    device: torch.device, oldest_capability: tuple[int, int] = OLDEST_CAPABILITY
) -> bool:
    """Whether the Triton form of an op can run on a device; its PyTorch form does elsewhere."""
    if triton is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= oldest_capability


def use_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes a tensor's GPU the current one, on which Triton launches."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def readable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its last dimension is strided, which the kernels do not read."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def cdiv(numerator: int, denominator: int) -> int:
    """The quotient rounded up: how many blocks cover so many elements."""
    return -(-numerator // denominator)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below ``number``, which is positive."""
    return 1 << (number - 1).bit_length()
