"""A linear layer in eight bits on the CPU, by oneDNN's integer product.

With ``v`` the bytes and ``s`` the scales of the rows, as ``int8`` describes them, and ``w`` and
``t`` those of the output channels:

1. ``a_mn = round(t_n * sum_k((v_mk - 128) * w_nk))``: the sum in integers, exact
2. ``y_mn = round(s_m * a_mn + bias_n)``

``round`` is to bfloat16 where the result is bfloat16, and else to float32, with a last one to the
result's dtype. No sum depends on an order, so a row has the same bits whatever rows are beside it
and however many threads there are.

oneDNN takes one scale for all of ``v``, so the second step is a pass of its own over the product,
in place: ``torch.ops.c2v.scale_rows_``, compiled in ``csrc/``. A bfloat16 product is rounded twice,
which makes 1% more of the error that quantising makes (0.0113 of the result in place of 0.0112).
Rounding once takes a float32 product, twice the size. For 1,024 rows, 896 wide, and 9,728 channels
on two cores of a Zen 4, product and pass take 1.5 times as long with it, for want of cache. In
blocks of rows whose float32 product stays in the cache they take 3% to 7% longer, and up to twice
as long where other work is on the cores: every block has threads wait for each other twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from c2v_engine.errors import BackendError, InputError
from c2v_engine.kernels._ops import FLOATS, check_like, check_rows, complete_op, refuse
from c2v_engine.kernels.int8 import ZERO_POINT
from c2v_engine.kernels.quantize_rows import quantize_rows_int8

__all__ = ["Int8Weight", "linear_int8", "pack_weight_int8", "why_not_int8"]

_MAX_IN_FEATURES = 2**16
"""Products of 255 and 127 at most, of which 32-bit integers hold the sum of 66,311."""
_BLOCK_ELEMENTS = 2**20
"""Of a weight that is quantised at a time."""
_PACKED_FOR = 128
"""Rows that a weight is laid out for; as many, fewer and more are as fast with it."""


@dataclass(frozen=True)
class Int8Weight:
    """A linear layer's weight in eight bits, as oneDNN wants it.

    Attributes:
        packed: the values, in oneDNN's own layout.
        scales: of the output channels, ``[out]`` float32.
        zero_points: likewise, all 0, int64.
        in_features: the width of the rows that it multiplies.
        out_features: the width of the result.
    """

    packed: Tensor
    scales: Tensor
    zero_points: Tensor
    in_features: int
    out_features: int


@lru_cache(maxsize=1)
def why_not_int8() -> str | None:
    """Why this machine has no product in eight bits, in one line; None where it has.

    Where the processor, or what oneDNN is allowed to use of it, has no instruction that sums
    products of bytes in 32 bits, oneDNN uses one that saturates in 16 and is wrong without a word.
    So a product that would saturate is tried.
    """
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    missing = [name for name in ("qlinear_prepack", "qlinear_pointwise") if not _has_op(name)]
    if missing:
        return f"torch {torch.__version__} has no onednn::{missing[0]}"
    if not _has_instructions():
        return "the CPU has neither AVX-512 VNNI nor AMX for products of bytes"
    try:
        right = _large_products_are_right()
    except RuntimeError as error:
        return (
            f"torch {torch.__version__} refuses a product of bytes: {' '.join(str(error).split())}"
        )
    if not right:
        return "oneDNN gives wrong products of bytes here; is ONEDNN_MAX_CPU_ISA set?"
    return None


def _has_op(name: str) -> bool:
    return hasattr(torch.ops.onednn, name)


def _has_instructions() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.12
        return bool(torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "amx_int8"))


def _large_products_are_right() -> bool:
    values, weight = torch.full((3, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127)
    packed = _pack(weight.to(torch.int8), torch.ones(16))
    return bool((_product(values, packed, torch.float32) == 64 * (255 - ZERO_POINT) * 127).all())


def pack_weight_int8(weight: Tensor) -> Int8Weight:
    """Writes a weight in eight bits with a scale for every output channel, some at a time.

    Args:
        weight: ``[out, in]`` float32, float16 or bfloat16 on the CPU, at most 65,536 in. A channel
            that is not finite makes its column of every result NaN.

    Returns:
        The weight for ``linear_int8``.

    Raises:
        InputError: the weight is not as described.
        BackendError: this machine has no product in eight bits.
    """
    check_rows("weight", weight)
    out, width = weight.shape
    if weight.device.type != "cpu" or out < 1 or width > _MAX_IN_FEATURES:
        refuse("weight", weight, f"[out >= 1, in <= {_MAX_IN_FEATURES}] on cpu")
    reason = why_not_int8()
    if reason is not None:
        raise BackendError(f"int8 can not be used: {reason}")
    values, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(out)
    step = max(1, _BLOCK_ELEMENTS // width)
    for start in range(0, out, step):
        block = slice(start, start + step)
        unsigned, channels = quantize_rows_int8(weight[block])
        values[block] = unsigned.bitwise_xor_(ZERO_POINT).view(torch.int8)  # less 128
        scales[block] = channels[:, 0]
    return _pack(values, scales)


def _pack(values: Tensor, scales: Tensor) -> Int8Weight:
    out, width = values.shape
    packed = torch.ops.onednn.qlinear_prepack(values, [_PACKED_FOR, width])
    return Int8Weight(packed, scales, torch.zeros(out, dtype=torch.int64), width, out)


def linear_int8(
    x_values: Tensor,
    x_scales: Tensor,
    weight: Int8Weight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Multiplies rows in eight bits with a weight in eight bits.

    Args:
        x_values: ``[rows, in]`` uint8, of ``quantize_rows_int8``, on the CPU.
        x_scales: ``[rows, 1]`` float32, likewise.
        weight: of ``pack_weight_int8``.
        bias: ``[out]`` of the result's dtype, on the CPU, or None.
        out_dtype: of the result: float32, float16 or bfloat16.

    Returns:
        ``[rows, out]``, in new memory. A row whose scale is not finite is NaN.

    Raises:
        InputError: a shape, dtype or device is not as described.
    """
    _check(x_values, x_scales, weight, bias, out_dtype)
    if not len(x_values):
        return torch.empty((0, weight.out_features), dtype=out_dtype)
    # The product of rows without their scales may be beyond float16.
    dtype = torch.bfloat16 if out_dtype == torch.bfloat16 else torch.float32
    y = _product(x_values.contiguous(), weight, dtype)
    torch.ops.c2v.scale_rows_(y, x_scales, None if bias is None else bias.to(dtype))
    return y.to(out_dtype)


def _product(values: Tensor, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
    """``[rows, out]`` float32 or bfloat16, of rows with the scale 1."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        values,
        1.0,
        ZERO_POINT,
        weight.packed,
        weight.scales,
        weight.zero_points,
        None,  # a bias, which would be added before the rows have their scales
        1.0,
        0,
        dtype,
        "none",
        [],
        "",
    )
    return product


def _check(
    x_values: Tensor,
    x_scales: Tensor,
    weight: Int8Weight,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> None:
    check_rows("x_values", x_values, dtypes=(torch.uint8,))
    if x_values.device.type != "cpu" or x_values.shape[1] != weight.in_features:
        refuse("x_values", x_values, f"[rows, {weight.in_features}] uint8 on cpu")
    check_like("x_scales", x_scales, (len(x_values), 1), x_values, dtype=torch.float32)
    if out_dtype not in FLOATS:
        raise InputError(f"out_dtype is {out_dtype}; expected float32, float16 or bfloat16")
    if bias is not None:
        check_like("bias", bias, (weight.out_features,), x_values, dtype=out_dtype)


def _scale_rows(x: Tensor, scales: Tensor, bias: Tensor | None) -> None:
    scaled = x.float() * scales
    if bias is not None:
        scaled += bias.float()
    x.copy_(scaled)


def _fake_scale_rows(x: Tensor, scales: Tensor, bias: Tensor | None) -> None:
    pass


complete_op(
    "scale_rows_",
    "(Tensor(a!) x, Tensor scales, Tensor? bias) -> ()",
    _scale_rows,
    _fake_scale_rows,
)
