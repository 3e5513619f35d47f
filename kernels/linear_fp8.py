"""A linear layer in float8: rows and output channels with a scale each, the result in bfloat16.

With ``x`` and ``weight`` in float8 and ``s`` and ``t`` the scales of a row and of a channel, as
``float8`` describes them:

1. ``y_mn = s_m * t_n * sum_k(x_mk * weight_nk)``
2. ``y = round(y + bias)``, rounded to bfloat16 once

The op is ``torch.ops.c2v.linear_fp8``, for inference only: it has no gradient. On a GPU that has
the format it is ``torch._scaled_mm``: cuBLAS on Hopper, CUTLASS on others. The tensor cores then
sum in fewer bits than float32 (``use_fast_accum``), and which rows are in the call may decide how
cuBLAS splits the sum. Everywhere else the PyTorch form serves, whose sums are float32.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import check_like, check_rows, complete_op, refuse
from c2v_engine.kernels.float8 import FLOAT8, FLOAT8_CAPABILITY, empty_float8_rows, quantize_rows

__all__ = ["linear_fp8", "linear_fp8_reference", "quantize_weight_fp8"]

_MULTIPLE = 16
"""Of which ``torch._scaled_mm`` demands both dimensions of the weight to be multiples."""
_BLOCK_ELEMENTS = 2**20
"""Of a weight that is quantised at a time: 4 MB in float32."""


def quantize_weight_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Writes a weight in float8 with a scale for every output channel, some channels at a time.

    Args:
        weight: ``[out, in]`` float32, float16 or bfloat16, both multiples of 16.

    Returns:
        ``[out, in]`` float8_e4m3fn, and the scales, ``[out, 1]`` float32.

    Raises:
        InputError: the weight is not as described.
    """
    check_rows("weight", weight)
    _check_multiples(weight)
    values, scales = empty_float8_rows(weight.shape[0], weight.shape[1], weight)
    step = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), step):
        block = slice(start, start + step)
        values[block], scales[block] = quantize_rows(weight[block])
    return values, scales


def linear_fp8(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Multiplies float8 rows with a float8 weight.

    Args:
        x: ``[rows, in]`` float8_e4m3fn.
        x_scales: ``[rows, 1]`` float32, on the same device.
        weight: ``[out, in]`` float8_e4m3fn, likewise, both multiples of 16.
        weight_scales: ``[out, 1]`` float32, likewise.
        bias: ``[out]`` bfloat16, likewise, or None.

    Returns:
        ``[rows, out]`` bfloat16, in new memory.

    Raises:
        InputError: a shape, dtype or device is not as described.
    """
    _check(x, x_scales, weight, weight_scales, bias)
    y: Tensor = torch.ops.c2v.linear_fp8(x, x_scales, weight, weight_scales, bias)
    return y


def linear_fp8_reference(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``linear_fp8`` for arguments, result and errors.
    """
    _check(x, x_scales, weight, weight_scales, bias)
    return _pytorch_form(x, x_scales, weight, weight_scales, bias)


def _pytorch_form(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> Tensor:
    y = F.linear(x.float(), weight.float()) * x_scales * weight_scales.t()
    if bias is not None:
        y += bias.float()
    return y.to(torch.bfloat16)


def _scaled_mm_form(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> Tensor:
    if not len(x):  # which not every release of torch takes
        return _fake(x, x_scales, weight, weight_scales, bias)
    return torch._scaled_mm(
        x.contiguous(),
        weight.contiguous().t(),
        scale_a=x_scales.contiguous(),
        scale_b=weight_scales.contiguous().t(),
        bias=None if bias is None else bias.contiguous(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


@cache
def _has_float8(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY


def _form_of_device(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    on_cuda = x.device.type == "cuda" and _has_float8(x.device)
    form = _scaled_mm_form if on_cuda else _pytorch_form
    return form(x, x_scales, weight, weight_scales, bias)


def _fake(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.bfloat16)


def _check(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> None:
    check_rows("x", x, dtypes=(FLOAT8,))
    check_rows("weight", weight, dtypes=(FLOAT8,))
    _check_multiples(weight)
    if weight.shape[1] != x.shape[1] or weight.device != x.device:
        refuse("weight", weight, f"[out, {x.shape[1]}] float8_e4m3fn on {x.device}")
    check_like("x_scales", x_scales, (x.shape[0], 1), x, dtype=torch.float32)
    check_like("weight_scales", weight_scales, (weight.shape[0], 1), x, dtype=torch.float32)
    if bias is not None:
        check_like("bias", bias, (weight.shape[0],), x, dtype=torch.bfloat16)


def _check_multiples(weight: Tensor) -> None:
    if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
        raise InputError(
            f"weight is {list(weight.shape)}; a product in float8 needs both to be multiples of "
            f"{_MULTIPLE}"
        )


complete_op(
    "linear_fp8",
    "(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales, Tensor? bias=None) -> Tensor",
    _form_of_device,
    _fake,
    compiled=False,
)
