"""The gated activation of the Llama family's MLP (SwiGLU, arXiv 2002.05202) in one pass.

With ``round`` for rounding to the tensor's dtype, for every row ``[gate ; up]``:

1. ``s = round(gate / (1 + exp(-gate)))``, computed in float32
2. ``product = round(s * up)``

This is ``silu(gate) * up`` in the rounding order of transformers' MLP.

The op is ``torch.ops.c2v.silu_and_mul``, for inference only: it has no gradient. On CUDA it is the
Triton kernel below, element by element. Its compiled CPU kernel stands in ``csrc/``; everywhere
else the PyTorch form below serves under the same name.

``torch.ops.c2v.silu_and_mul_fp8`` writes ``product`` as float8 with a scale for every row, as
``float8`` describes; its Triton kernel reads every row once, as a whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import check_rows, complete_op
from c2v_engine.kernels._tiles import MAX_TILE_COLUMNS, element_tile, row_tile
from c2v_engine.kernels._triton import jit, readable, tl
from c2v_engine.kernels.float8 import (
    FLOAT8_CAPABILITY,
    empty_float8_rows,
    quantize_rows,
    store_float8_rows,
)

__all__ = [
    "silu_and_mul",
    "silu_and_mul_fp8",
    "silu_and_mul_fp8_reference",
    "silu_and_mul_reference",
]


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Multiplies the SiLU of each row's first half with its second half.

    Args:
        gate_up: ``[tokens, 2 * intermediate]`` float32, float16 or bfloat16, gate and up joined;
            its rows may be strided.

    Returns:
        ``[tokens, intermediate]`` of the same dtype, in new memory.

    Raises:
        InputError: a shape or dtype is not as described.
    """
    _check(gate_up)
    product: Tensor = torch.ops.c2v.silu_and_mul(gate_up)
    return product


def silu_and_mul_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """``silu_and_mul`` with the products in float8.

    See ``silu_and_mul`` for argument and errors.

    Returns:
        ``[tokens, intermediate]`` float8_e4m3fn, and the scale of each row, ``[tokens, 1]``
        float32.
    """
    _check(gate_up)
    product, scales = torch.ops.c2v.silu_and_mul_fp8(gate_up)
    return product, scales


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``silu_and_mul`` for argument, result and errors.
    """
    _check(gate_up)
    return _pytorch_form(gate_up)


def silu_and_mul_fp8_reference(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``silu_and_mul_fp8`` for argument, results and errors.
    """
    _check(gate_up)
    return _pytorch_form_fp8(gate_up)


def _pytorch_form(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def _pytorch_form_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows(_pytorch_form(gate_up))


def _fake(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _fake_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    return empty_float8_rows(gate_up.shape[0], gate_up.shape[1] // 2, gate_up)


@jit(do_not_specialize=["tokens"])
def _silu_and_mul_kernel(
    gate_up: tl.tensor,
    gate_up_stride: tl.tensor,
    product: tl.tensor,
    scales: tl.tensor,
    tokens: int,
    INTERMEDIATE: tl.constexpr,
    FLOAT8: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch may hold more than 2^31 elements, so rows are counted in int64.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside = rows < tokens
    inside = row_inside[:, None] & (columns < INTERMEDIATE)[None, :]
    at = rows[:, None] * gate_up_stride + columns[None, :]
    gate = tl.load(gate_up + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + INTERMEDIATE, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(gate_up.dtype.element_ty).to(tl.float32)
    result = (silu * up).to(gate_up.dtype.element_ty)
    at = rows[:, None] * INTERMEDIATE + columns[None, :]
    if FLOAT8:
        wide = result.to(tl.float32)
        store_float8_rows(product, at, scales, rows, wide, inside, row_inside)
    else:
        tl.store(product + at, result, mask=inside)


def _triton_form(gate_up: Tensor) -> Tensor:
    product = _fake(gate_up)
    _launch(gate_up, product, None)
    return product


def _triton_form_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    if gate_up.shape[1] // 2 > MAX_TILE_COLUMNS:
        return _pytorch_form_fp8(gate_up)
    product, scales = _fake_fp8(gate_up)
    _launch(gate_up, product, scales)
    return product, scales


def _launch(gate_up: Tensor, product: Tensor, scales: Tensor | None) -> None:
    tokens, intermediate = product.shape
    if tokens == 0:
        return
    gate_up = readable(gate_up)
    # A row's scale needs all of the row in one program; the products alone need not.
    tile = element_tile(intermediate) if scales is None else row_tile(intermediate)
    _silu_and_mul_kernel[tile.grid(tokens)](
        gate_up,
        gate_up.stride(0),
        product,
        product if scales is None else scales,
        tokens,
        INTERMEDIATE=intermediate,
        FLOAT8=scales is not None,
        **tile.options,
    )


def _check(gate_up: Tensor) -> None:
    check_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise InputError(
            f"gate_up has {gate_up.shape[1]} columns; expected gate and up joined, an even number"
        )


complete_op(
    "silu_and_mul",
    "(Tensor gate_up) -> Tensor",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
)
complete_op(
    "silu_and_mul_fp8",
    "(Tensor gate_up) -> (Tensor product, Tensor scales)",
    _pytorch_form_fp8,
    _fake_fp8,
    triton_form=_triton_form_fp8,
    oldest_capability=FLOAT8_CAPABILITY,
    compiled=False,
)
