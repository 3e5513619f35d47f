"""Rows in eight bits with a scale each, where no pass before the product could write them so.

The formats and their rounding are those of ``float8`` and ``int8``. The ops are for inference only:
they have no gradient.

``torch.ops.c2v.quantize_rows_fp8`` is on CUDA the Triton kernel below, which reads every row once;
everywhere else its PyTorch form serves under the same name. ``torch.ops.c2v.quantize_rows_int8`` is
for products on a CPU: its compiled kernel stands in ``csrc/``, with its PyTorch form elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.kernels import float8, int8
from c2v_engine.kernels._ops import check_rows, complete_op
from c2v_engine.kernels._tiles import MAX_TILE_COLUMNS, row_tile
from c2v_engine.kernels._triton import jit, readable, tl
from c2v_engine.kernels.float8 import FLOAT8_CAPABILITY, empty_float8_rows, store_float8_rows
from c2v_engine.kernels.int8 import empty_int8_rows

__all__ = [
    "quantize_rows_fp8",
    "quantize_rows_fp8_reference",
    "quantize_rows_int8",
    "quantize_rows_int8_reference",
]


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Writes each row in float8 with a scale.

    Args:
        x: ``[rows, columns]`` float32, float16 or bfloat16; its rows may be strided.

    Returns:
        ``[rows, columns]`` float8_e4m3fn, and the scale of each row, ``[rows, 1]`` float32, in new
        memory. A row that is not finite has a NaN among its values.

    Raises:
        InputError: the shape or dtype is not as described.
    """
    check_rows("x", x)
    values, scales = torch.ops.c2v.quantize_rows_fp8(x)
    return values, scales


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Writes each row in eight bits around 128 with a scale.

    See ``quantize_rows_fp8`` for argument and errors.

    Returns:
        ``[rows, columns]`` uint8, and the scale of each row, ``[rows, 1]`` float32, in new memory.
        A row that is not finite has a scale that is not.
    """
    check_rows("x", x)
    values, scales = torch.ops.c2v.quantize_rows_int8(x)
    return values, scales


def quantize_rows_fp8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``quantize_rows_fp8`` for argument, results and errors.
    """
    check_rows("x", x)
    return float8.quantize_rows(x)


def quantize_rows_int8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``quantize_rows_int8`` for argument, results and errors.
    """
    check_rows("x", x)
    return int8.quantize_rows(x)


def _fake_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_float8_rows(x.shape[0], x.shape[1], x)


def _fake_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_int8_rows(x.shape[0], x.shape[1], x)


@jit(do_not_specialize=["rows"])
def _quantize_rows_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    rows: int,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch may hold more than 2^31 elements, so rows are counted in int64.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    row_inside = row < rows
    inside = row_inside[:, None] & (columns < WIDTH)[None, :]
    at = row[:, None] * x_stride + columns[None, :]
    wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    at = row[:, None] * WIDTH + columns[None, :]
    store_float8_rows(values, at, scales, row, wide, inside, row_inside)


def _triton_form_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    if width > MAX_TILE_COLUMNS:
        return float8.quantize_rows(x)
    values, scales = _fake_fp8(x)
    if rows == 0:
        return values, scales
    x = readable(x)
    tile = row_tile(width)
    _quantize_rows_kernel[tile.grid(rows)](
        x, x.stride(0), values, scales, rows, WIDTH=width, **tile.options
    )
    return values, scales


complete_op(
    "quantize_rows_fp8",
    "(Tensor x) -> (Tensor values, Tensor scales)",
    float8.quantize_rows,
    _fake_fp8,
    triton_form=_triton_form_fp8,
    oldest_capability=FLOAT8_CAPABILITY,
    compiled=False,
)
complete_op(
    "quantize_rows_int8",
    "(Tensor x) -> (Tensor values, Tensor scales)",
    int8.quantize_rows,
    _fake_int8,
)
