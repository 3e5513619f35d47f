"""Rows in float8 with a scale each, as ``torch._scaled_mm`` takes them (arXiv 2209.05433).

The format is E4M3 without infinities, whose largest value is 448. For every row ``x``, already
rounded to the dtype that it would have had:

1. ``largest = max(max_i |x_i|, 1e-12)``, and ``scale = largest / 448``, float32
2. ``q_i = round(x_i * (448 / largest))`` to E4M3, so that ``x`` is about ``q * scale``

A row with a NaN or an infinity has a NaN among its values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.kernels._triton import jit, tl

__all__ = [
    "FLOAT8",
    "FLOAT8_CAPABILITY",
    "FLOAT8_MAX",
    "empty_float8_rows",
    "quantize_rows",
    "store_float8_rows",
]

FLOAT8 = torch.float8_e4m3fn
FLOAT8_CAPABILITY = (8, 9)
"""The first compute capability that has the format; on an older one the PyTorch form serves."""
FLOAT8_MAX = 448.0
_SMALLEST = 1e-12


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row of a tensor, in plain PyTorch.

    Args:
        x: ``[rows, columns]``, floating.

    Returns:
        ``[rows, columns]`` float8_e4m3fn, and the scales, ``[rows, 1]`` float32.
    """
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST)
    # Between a tensor and a number torch multiplies by a reciprocal, on CUDA whichever comes first:
    # two roundings where the kernels have one.
    greatest = torch.full_like(largest, FLOAT8_MAX)
    inverse = greatest / largest
    # Rounding can carry a product past the largest value, which the format would make NaN.
    values = (wide * inverse).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8)
    return values, largest / greatest


def empty_float8_rows(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the values ``[rows, columns]`` and the scales ``[rows, 1]``."""
    scales = like.new_empty((rows, 1), dtype=torch.float32)
    return like.new_empty((rows, columns), dtype=FLOAT8), scales


@jit()
def store_float8_rows(
    values: tl.tensor,
    at: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    x: tl.tensor,
    inside: tl.tensor,
    row_inside: tl.tensor,
) -> None:
    """Quantises a tile of whole rows and stores values and scales.

    Args:
        values: pointer to the float8 output.
        at: offsets of the tile's elements, [rows, columns].
        scales: pointer to one float32 a row.
        rows: offsets of the tile's rows, [rows].
        x: the tile, float32, zero where it is outside.
        inside: which elements exist, [rows, columns].
        row_inside: which rows exist, [rows].
    """
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), 1e-12)
    inverse = tl.div_rn(tl.full(largest.shape, 448.0, tl.float32), largest)
    # The conversion saturates and keeps NaN.
    tl.store(values + at, (x * inverse[:, None]).to(tl.float8e4nv), mask=inside)
    scale = tl.div_rn(largest, tl.full(largest.shape, 448.0, tl.float32))
    tl.store(scales + rows, scale, mask=row_inside)
