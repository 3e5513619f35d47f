"""Residual addition and LayerNorm (arXiv 1607.06450) in one pass over the rows.

With ``round`` for rounding to the tensors' dtype, for every row:

0. where ``x_bias`` is given, ``x = round(x + x_bias)``
1. ``s = round(x + residual)``, or ``s = x`` without a residual
2. ``mean = mean(s)`` and ``inverse = 1 / sqrt(mean((s - mean)^2) + eps)``, in float32
3. ``normed = round((s - mean) * inverse * weight + bias)``

This is what ``torch.nn.LayerNorm(x + residual)`` gives, the order of transformers' BERT. A NaN or
an infinity in a row makes its whole ``normed`` row NaN. ``x_bias`` is the bias of the linear layer
that made ``x``, for a matrix product that left it out.

The op is ``torch.ops.c2v.add_layer_norm``, for inference only: it has no gradient. On CUDA it is
the Triton kernel below: one launch, in which every row is read once. Its compiled CPU kernel stands
in ``csrc/``; everywhere else the PyTorch form below serves under the same name.

``torch.ops.c2v.add_layer_norm_fp8`` writes ``normed`` as float8 with a scale for every row, as
``float8`` describes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.kernels._ops import check_eps, check_like, check_rows, complete_op
from c2v_engine.kernels._tiles import MAX_FLOAT8_NORM_COLUMNS, MAX_TILE_COLUMNS, row_tile
from c2v_engine.kernels._triton import jit, readable, tl
from c2v_engine.kernels.float8 import (
    FLOAT8_CAPABILITY,
    empty_float8_rows,
    quantize_rows,
    store_float8_rows,
)

__all__ = [
    "add_layer_norm",
    "add_layer_norm_fp8",
    "add_layer_norm_fp8_reference",
    "add_layer_norm_reference",
]


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    x_bias: Tensor | None = None,
) -> Tensor:
    """Normalises the sum of ``x`` and the residual; neither is changed.

    Args:
        x: ``[tokens, hidden]`` float32, float16 or bfloat16; its rows may be strided.
        residual: ``[tokens, hidden]`` of the same dtype and device, or None to add nothing.
        weight: ``[hidden]``, likewise, of the LayerNorm.
        bias: ``[hidden]``, likewise.
        eps: its epsilon.
        x_bias: ``[hidden]``, likewise, added to x first, or None to add nothing.

    Returns:
        ``[tokens, hidden]``, the normalised rows, in new memory.

    Raises:
        InputError: a shape, dtype or device is not as described.
    """
    _check(x, residual, weight, bias, x_bias)
    check_eps(eps)
    normed: Tensor = torch.ops.c2v.add_layer_norm(x, residual, weight, bias, eps, x_bias)
    return normed


def add_layer_norm_fp8(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``add_layer_norm`` with the normalised rows in float8.

    See ``add_layer_norm`` for arguments and errors.

    Returns:
        ``[tokens, hidden]`` float8_e4m3fn, and the scale of each row, ``[tokens, 1]`` float32.
    """
    _check(x, residual, weight, bias, x_bias)
    check_eps(eps)
    normed, scales = torch.ops.c2v.add_layer_norm_fp8(x, residual, weight, bias, eps, x_bias)
    return normed, scales


def add_layer_norm_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    x_bias: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``add_layer_norm`` for arguments, result and errors.
    """
    _check(x, residual, weight, bias, x_bias)
    check_eps(eps)
    return _pytorch_form(x, residual, weight, bias, eps, x_bias)


def add_layer_norm_fp8_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``add_layer_norm_fp8`` for arguments, results and errors.
    """
    _check(x, residual, weight, bias, x_bias)
    check_eps(eps)
    return _pytorch_form_fp8(x, residual, weight, bias, eps, x_bias)


# PyTorch leaves out a trailing argument that has its default, so the forms have the same default.


def _pytorch_form(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> Tensor:
    total = x if x_bias is None else x + x_bias
    total = total if residual is None else total + residual
    return F.layer_norm(total, (total.shape[1],), weight, bias, eps)


def _pytorch_form_fp8(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return quantize_rows(_pytorch_form(x, residual, weight, bias, eps, x_bias))


def _fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape)


def _fake_fp8(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return empty_float8_rows(x.shape[0], x.shape[1], x)


@jit()
def normalize_tile(
    total: tl.tensor,
    column_inside: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
    eps: float,
    HIDDEN: tl.constexpr,
) -> tl.tensor:
    """Normalises a tile of whole rows, float32 and zero beyond their columns."""
    mean = tl.sum(total, axis=1) / HIDDEN
    # Columns beyond the row are zeros, which deviate from the mean too and must not count.
    deviation = tl.where(column_inside[None, :], total - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(deviation * deviation, axis=1) / HIDDEN + eps)
    return deviation * inverse[:, None] * factor[None, :] + shift[None, :]


@jit(do_not_specialize=["tokens"])
def _add_layer_norm_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    x_bias: tl.tensor,
    residual: tl.tensor,
    residual_stride: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normed: tl.tensor,
    scales: tl.tensor,
    tokens: int,
    eps: float,
    HIDDEN: tl.constexpr,
    ADD_BIAS: tl.constexpr,
    ADD: tl.constexpr,
    FLOAT8: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch may hold more than 2^31 elements, so rows are counted in int64.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    row_inside = rows < tokens
    column_inside = columns < HIDDEN
    inside = row_inside[:, None] & column_inside[None, :]
    at = rows[:, None] * x_stride + columns[None, :]
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD_BIAS:
        addend = tl.load(x_bias + columns, mask=column_inside, other=0.0).to(tl.float32)
        total = (total + addend[None, :]).to(x.dtype.element_ty).to(tl.float32)
    if ADD:
        at = rows[:, None] * residual_stride + columns[None, :]
        addend = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        total = (total + addend).to(x.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + columns, mask=column_inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float32)
    result = normalize_tile(total, column_inside, factor, shift, eps, HIDDEN)
    result = result.to(x.dtype.element_ty)
    at = rows[:, None] * HIDDEN + columns[None, :]
    if FLOAT8:
        wide = result.to(tl.float32)
        store_float8_rows(normed, at, scales, rows, wide, inside, row_inside)
    else:
        tl.store(normed + at, result, mask=inside)


def _triton_form(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> Tensor:
    if x.shape[1] > MAX_TILE_COLUMNS:
        return _pytorch_form(x, residual, weight, bias, eps, x_bias)
    normed = x.new_empty(x.shape)
    _launch(x, residual, weight, bias, eps, x_bias, normed, None)
    return normed


def _triton_form_fp8(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if x.shape[1] > MAX_FLOAT8_NORM_COLUMNS:
        return _pytorch_form_fp8(x, residual, weight, bias, eps, x_bias)
    normed, scales = empty_float8_rows(x.shape[0], x.shape[1], x)
    _launch(x, residual, weight, bias, eps, x_bias, normed, scales)
    return normed, scales


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None,
    normed: Tensor,
    scales: Tensor | None,
) -> None:
    tokens, hidden = x.shape
    if tokens == 0:
        return
    x, added = readable(x), readable(x if residual is None else residual)
    weight, bias = readable(weight), readable(bias)
    tile = row_tile(hidden)
    _add_layer_norm_kernel[tile.grid(tokens)](
        x,
        x.stride(0),
        bias if x_bias is None else readable(x_bias),
        added,
        added.stride(0),
        weight,
        bias,
        normed,
        normed if scales is None else scales,
        tokens,
        eps,
        HIDDEN=hidden,
        ADD_BIAS=x_bias is not None,
        ADD=residual is not None,
        FLOAT8=scales is not None,
        **tile.options,
    )


def _check(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, x_bias: Tensor | None
) -> None:
    check_rows("x", x)
    if residual is not None:
        check_like("residual", residual, tuple(x.shape), x)
    check_like("weight", weight, (x.shape[1],), x)
    check_like("bias", bias, (x.shape[1],), x)
    if x_bias is not None:
        check_like("x_bias", x_bias, (x.shape[1],), x)


_ARGUMENTS = (
    "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps, Tensor? x_bias=None)"
)

complete_op(
    "add_layer_norm",
    f"{_ARGUMENTS} -> Tensor",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
)
complete_op(
    "add_layer_norm_fp8",
    f"{_ARGUMENTS} -> (Tensor normed, Tensor scales)",
    _pytorch_form_fp8,
    _fake_fp8,
    triton_form=_triton_form_fp8,
    oldest_capability=FLOAT8_CAPABILITY,
    compiled=False,
)
