"""Residual addition and RMSNorm (arXiv 1910.07467) in one pass over the rows.

With ``round`` for rounding to the tensors' dtype, for every row:

1. where ``x`` is given, ``residual = round(residual + x)``, in place
2. ``inverse = 1 / sqrt(mean(residual^2) + eps)``, in float32
3. ``normed = round(weight * round(residual * inverse))``

This is the rounding order of transformers' ``LlamaRMSNorm``: the row is rounded before the weight
is applied. A NaN in a row makes its whole ``normed`` row NaN.

The op is ``torch.ops.c2v.add_rms_norm``, for inference only: it has no gradient. Its compiled CPU
kernel stands in ``csrc/``; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.kernels._ops import check_like, check_rows, complete_op

__all__ = ["add_rms_norm", "add_rms_norm_reference"]


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
    normed: Tensor = torch.ops.c2v.add_rms_norm(residual, x, weight, eps)
    return normed


def add_rms_norm_reference(
    residual: Tensor, x: Tensor | None, weight: Tensor, *, eps: float
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``add_rms_norm`` for arguments, result and errors.
    """
    _check(residual, x, weight)
    return _pytorch_form(residual, x, weight, eps)


def _pytorch_form(residual: Tensor, x: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if x is not None:
        residual += x
    rows = residual.float()
    inverse = torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (rows * inverse).to(residual.dtype)


def _fake(residual: Tensor, x: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    return residual.new_empty(residual.shape)


def _check(residual: Tensor, x: Tensor | None, weight: Tensor) -> None:
    check_rows("residual", residual, written=x is not None)
    if x is not None:
        check_like("x", x, tuple(residual.shape), residual)
    check_like("weight", weight, (residual.shape[1],), residual)


complete_op(
    "add_rms_norm",
    "(Tensor(a!) residual, Tensor? x, Tensor weight, float eps) -> Tensor",
    _pytorch_form,
    _fake,
)
