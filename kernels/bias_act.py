"""Bias and activation in one pass, in place over the rows.

With ``round`` for rounding to the tensors' dtype, for every element of column ``j``:

1. where a bias is given, ``x = round(x + bias_j)``
2. ``x = round(act(x))``, computed in float32

The activations are PyTorch's, and ``act(x)`` is

- ``gelu``: ``x * (1 + erf(x / sqrt(2))) / 2``
- ``gelu_tanh``: ``x * (1 + tanh(u)) / 2`` with ``u = sqrt(2 / pi) * (x + 0.044715 x^3)``
- ``relu``: ``max(x, 0)``, and NaN of NaN
- ``silu``: ``x / (1 + exp(-x))``
- ``tanh``: ``tanh(x)``
- ``identity``: ``x``

The op is ``torch.ops.c2v.bias_act_``, for inference only: it has no gradient. Everywhere but on
CUDA the PyTorch form below serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import check_like, check_rows, complete_op

__all__ = ["ACTIVATIONS", "bias_act_", "bias_act_reference_"]


def _gelu(x: Tensor) -> None:
    torch.ops.aten.gelu_(x)


def _gelu_tanh(x: Tensor) -> None:
    torch.ops.aten.gelu_(x, approximate="tanh")


def _relu(x: Tensor) -> None:
    F.relu_(x)


def _silu(x: Tensor) -> None:
    F.silu(x, inplace=True)


def _tanh(x: Tensor) -> None:
    torch.tanh_(x)


def _identity(x: Tensor) -> None:
    pass


_IN_PLACE: Mapping[str, Callable[[Tensor], None]] = MappingProxyType(
    {
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "relu": _relu,
        "silu": _silu,
        "tanh": _tanh,
        "identity": _identity,
    }
)

ACTIVATIONS = tuple(_IN_PLACE)
"""The names that ``bias_act_`` takes."""


def bias_act_(x: Tensor, bias: Tensor | None, *, activation: str) -> None:
    """Adds a bias to every row and applies an activation, in place.

    Args:
        x: ``[rows, columns]`` float32, float16 or bfloat16, written in place; its rows must be
            contiguous and may be strided.
        bias: ``[columns]`` of x's dtype and device, or None to add nothing.
        activation: one of ``ACTIVATIONS``.

    Raises:
        InputError: a shape, dtype, device or stride is not as described, or the activation is
            unknown.
    """
    _check(x, bias, activation)
    torch.ops.c2v.bias_act_(x, bias, activation)


def bias_act_reference_(x: Tensor, bias: Tensor | None, *, activation: str) -> None:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``bias_act_`` for arguments and errors.
    """
    _check(x, bias, activation)
    _pytorch_form(x, bias, activation)


def _pytorch_form(x: Tensor, bias: Tensor | None, activation: str) -> None:
    if bias is not None:
        x += bias
    _IN_PLACE[activation](x)


def _fake(x: Tensor, bias: Tensor | None, activation: str) -> None:
    return None


def _check(x: Tensor, bias: Tensor | None, activation: str) -> None:
    check_rows("x", x, written=True)
    if bias is not None:
        check_like("bias", bias, (x.shape[1],), x)
    if activation not in _IN_PLACE:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"activation is {activation!r}; choose one of {known}")


complete_op(
    "bias_act_",
    "(Tensor(a!) x, Tensor? bias, str activation) -> ()",
    _pytorch_form,
    _fake,
    compiled=False,
)
