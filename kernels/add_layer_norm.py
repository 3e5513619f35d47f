"""Residual addition and LayerNorm (arXiv 1607.06450) in one pass over the rows.

With ``round`` for rounding to the tensors' dtype, for every row:

1. ``s = round(x + residual)``, or ``s = x`` without a residual
2. ``mean = mean(s)`` and ``inverse = 1 / sqrt(mean((s - mean)^2) + eps)``, in float32
3. ``normed = round((s - mean) * inverse * weight + bias)``

This is what ``torch.nn.LayerNorm(x + residual)`` gives, the order of transformers' BERT. A NaN or
an infinity in a row makes its whole ``normed`` row NaN.

The op is ``torch.ops.c2v.add_layer_norm``, for inference only: it has no gradient. Its compiled CPU
kernel stands in ``csrc/``; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.kernels._ops import check_like, check_rows, complete_op

__all__ = ["add_layer_norm", "add_layer_norm_reference"]


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> Tensor:
    """Normalises the sum of ``x`` and the residual; neither is changed.

    Args:
        x: ``[tokens, hidden]`` float32, float16 or bfloat16; its rows may be strided.
        residual: ``[tokens, hidden]`` of the same dtype and device, or None to add nothing.
        weight: ``[hidden]``, likewise, of the LayerNorm.
        bias: ``[hidden]``, likewise.
        eps: its epsilon.

    Returns:
        ``[tokens, hidden]``, the normalised rows, in new memory.

    Raises:
        InputError: a shape, dtype or device is not as described.
    """
    _check(x, residual, weight, bias)
    normed: Tensor = torch.ops.c2v.add_layer_norm(x, residual, weight, bias, eps)
    return normed


def add_layer_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``add_layer_norm`` for arguments, result and errors.
    """
    _check(x, residual, weight, bias)
    return _pytorch_form(x, residual, weight, bias, eps)


def _pytorch_form(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    total = x if residual is None else x + residual
    return F.layer_norm(total, (total.shape[1],), weight, bias, eps)


def _fake(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    check_rows("x", x)
    if residual is not None:
        check_like("residual", residual, tuple(x.shape), x)
    check_like("weight", weight, (x.shape[1],), x)
    check_like("bias", bias, (x.shape[1],), x)


complete_op(
    "add_layer_norm",
    "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps) -> Tensor",
    _pytorch_form,
    _fake,
)
