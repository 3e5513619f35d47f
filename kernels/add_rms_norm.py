"""Residual addition and RMSNorm (arXiv 1910.07467) in one pass over the rows.

With ``round`` for rounding to the tensors' dtype, for every row:

1. where ``x`` is given, ``residual = round(residual + x)``, in place
2. ``inverse = 1 / sqrt(mean(residual^2) + eps)``, in float32
3. ``normed = round(weight * round(residual * inverse))``

This is the rounding order of transformers' ``LlamaRMSNorm``: the row is rounded before the weight
is applied. A NaN in a row makes its whole ``normed`` row NaN.

The op is ``torch.ops.c2v.add_rms_norm``, for inference only: it has no gradient. On CUDA it is the
Triton kernel below: one launch, in which every row is read once. Its compiled CPU kernel stands in
``csrc/``; everywhere else the PyTorch form below serves under the same name.

``torch.ops.c2v.add_rms_norm_fp8`` writes ``normed`` as float8 with a scale for every row, as
``float8`` describes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.kernels._ops import check_apart, check_eps, check_like, check_rows, complete_op
from c2v_engine.kernels._tiles import MAX_FLOAT8_NORM_COLUMNS, MAX_TILE_COLUMNS, row_tile
from c2v_engine.kernels._triton import jit, readable, tl
from c2v_engine.kernels.float8 import (
    FLOAT8_CAPABILITY,
    empty_float8_rows,
    quantize_rows,
    store_float8_rows,
)

__all__ = [
    "add_rms_norm",
    "add_rms_norm_fp8",
    "add_rms_norm_fp8_reference",
    "add_rms_norm_reference",
]


def add_rms_norm(residual: Tensor, x: Tensor | None, weight: Tensor, *, eps: float) -> Tensor:
    """Adds ``x`` to the residual stream in place and normalises the sum.

    Args:
        residual: ``[tokens, hidden]`` float32, float16 or bfloat16; becomes the sum where ``x`` is
            given, and its rows must then be contiguous (they may be strided).
        x: ``[tokens, hidden]`` of the same dtype and device, or None to add nothing.
        weight: ``[hidden]``, likewise, of the RMSNorm.
        eps: its epsilon.

    Returns:
        ``[tokens, hidden]``, the normalised rows, in new memory.

    Raises:
        InputError: a shape, dtype, device or stride is not as described.
    """
    _check(residual, x, weight)
    check_eps(eps)
    normed: Tensor = torch.ops.c2v.add_rms_norm(residual, x, weight, eps)
    return normed


def add_rms_norm_fp8(
    residual: Tensor, x: Tensor | None, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """``add_rms_norm`` with the normalised rows in float8.

    See ``add_rms_norm`` for arguments and errors.

    Returns:
        ``[tokens, hidden]`` float8_e4m3fn, and the scale of each row, ``[tokens, 1]`` float32.
    """
    _check(residual, x, weight)
    check_eps(eps)
    normed, scales = torch.ops.c2v.add_rms_norm_fp8(residual, x, weight, eps)
    return normed, scales


def add_rms_norm_reference(
    residual: Tensor, x: Tensor | None, weight: Tensor, *, eps: float
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``add_rms_norm`` for arguments, result and errors.
    """
    _check(residual, x, weight)
    check_eps(eps)
    return _pytorch_form(residual, x, weight, eps)


def add_rms_norm_fp8_reference(
    residual: Tensor, x: Tensor | None, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``add_rms_norm_fp8`` for arguments, results and errors.
    """
    _check(residual, x, weight)
    check_eps(eps)
    return _pytorch_form_fp8(residual, x, weight, eps)


def _pytorch_form(residual: Tensor, x: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if x is not None:
        residual += x
    rows = residual.float()
    inverse = torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (rows * inverse).to(residual.dtype)


def _pytorch_form_fp8(
    residual: Tensor, x: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return quantize_rows(_pytorch_form(residual, x, weight, eps))


def _fake(residual: Tensor, x: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    return residual.new_empty(residual.shape)


def _fake_fp8(
    residual: Tensor, x: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return empty_float8_rows(residual.shape[0], residual.shape[1], residual)


@jit(do_not_specialize=["tokens"])
def _add_rms_norm_kernel(
    residual: tl.tensor,
    residual_stride: tl.tensor,
    x: tl.tensor,
    x_stride: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    scales: tl.tensor,
    tokens: int,
    eps: float,
    HIDDEN: tl.constexpr,
    ADD: tl.constexpr,
    FLOAT8: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch may hold more than 2^31 elements, so rows are counted in int64.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    row_inside = rows < tokens
    inside = row_inside[:, None] & (columns < HIDDEN)[None, :]
    at = rows[:, None] * residual_stride + columns[None, :]
    total = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        addend = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
        rounded = (total + addend.to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(residual + at, rounded, mask=inside)
        total = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total * total, axis=1) / HIDDEN + eps)
    unit = (total * inverse[:, None]).to(residual.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    product = (factor[None, :] * unit).to(residual.dtype.element_ty)
    at = rows[:, None] * HIDDEN + columns[None, :]
    if FLOAT8:
        wide = product.to(tl.float32)
        store_float8_rows(normed, at, scales, rows, wide, inside, row_inside)
    else:
        tl.store(normed + at, product, mask=inside)


def _triton_form(residual: Tensor, x: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if residual.shape[1] > MAX_TILE_COLUMNS:
        return _pytorch_form(residual, x, weight, eps)
    normed = residual.new_empty(residual.shape)
    _launch(residual, x, weight, eps, normed, None)
    return normed


def _triton_form_fp8(
    residual: Tensor, x: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    if residual.shape[1] > MAX_FLOAT8_NORM_COLUMNS:
        return _pytorch_form_fp8(residual, x, weight, eps)
    normed, scales = _fake_fp8(residual, x, weight, eps)
    _launch(residual, x, weight, eps, normed, scales)
    return normed, scales


def _launch(
    residual: Tensor,
    x: Tensor | None,
    weight: Tensor,
    eps: float,
    normed: Tensor,
    scales: Tensor | None,
) -> None:
    tokens, hidden = residual.shape
    if tokens == 0:
        return
    residual, x, weight = readable(residual), None if x is None else readable(x), readable(weight)
    # The float8 form of float32 rows spills at 2,048 and 4,096 columns with 16 elements a thread.
    spills = scales is not None and residual.dtype == torch.float32
    tile = row_tile(hidden, per_thread=8) if spills else row_tile(hidden)
    _add_rms_norm_kernel[tile.grid(tokens)](
        residual,
        residual.stride(0),
        residual if x is None else x,
        residual.stride(0) if x is None else x.stride(0),
        weight,
        normed,
        normed if scales is None else scales,
        tokens,
        eps,
        HIDDEN=hidden,
        ADD=x is not None,
        FLOAT8=scales is not None,
        **tile.options,
    )


def _check(residual: Tensor, x: Tensor | None, weight: Tensor) -> None:
    check_rows("residual", residual, written=x is not None)
    if x is not None:
        check_like("x", x, tuple(residual.shape), residual)
        check_apart("x", x, "residual", residual)
        check_apart("weight", weight, "residual", residual)
    check_like("weight", weight, (residual.shape[1],), residual)


_ARGUMENTS = "(Tensor(a!) residual, Tensor? x, Tensor weight, float eps)"

complete_op(
    "add_rms_norm",
    f"{_ARGUMENTS} -> Tensor",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
)
complete_op(
    "add_rms_norm_fp8",
    f"{_ARGUMENTS} -> (Tensor normed, Tensor scales)",
    _pytorch_form_fp8,
    _fake_fp8,
    triton_form=_triton_form_fp8,
    oldest_capability=FLOAT8_CAPABILITY,
    compiled=False,
)
