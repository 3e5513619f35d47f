"""Rows in eight bits with a scale each, as oneDNN's integer product takes them.

The values are symmetric: -127 to 127, kept unsigned around 128, because the processor's instruction
multiplies unsigned bytes with signed ones. For every row ``x``:

1. ``largest = max(max_i |x_i|, 1e-12)``, and ``scale = largest / 127``, float32
2. ``v_i = 128 + round(x_i * (127 / largest))``, ties to even, so that ``x`` is about
   ``(v - 128) * scale``

A row with a NaN or an infinity is 128 throughout and has a scale that is not finite: every product
with it is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["INT8_MAX", "ZERO_POINT", "empty_int8_rows", "quantize_rows"]

INT8_MAX = 127.0
ZERO_POINT = 128
"""The byte that stands for zero."""
_SMALLEST = 1e-12


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row of a tensor, in plain PyTorch.

    Args:
        x: ``[rows, columns]``, floating.

    Returns:
        ``[rows, columns]`` uint8, and the scales, ``[rows, 1]`` float32.
    """
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST)
    # A number over a tensor would be the reciprocal times the number, which rounds twice.
    inverse = torch.full_like(largest, INT8_MAX) / largest
    # What is not finite here is of a row whose scale is not finite either.
    whole = (wide * inverse).round().nan_to_num(0.0)
    return (whole + ZERO_POINT).to(torch.uint8), largest / INT8_MAX


def empty_int8_rows(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the values ``[rows, columns]`` and the scales ``[rows, 1]``."""
    scales = like.new_empty((rows, 1), dtype=torch.float32)
    return like.new_empty((rows, columns), dtype=torch.uint8), scales
