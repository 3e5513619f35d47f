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

The op is ``torch.ops.c2v.bias_act_``, for inference only: it has no gradient. On CUDA it is the
Triton kernel below, one launch; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import check_apart, check_like, check_rows, complete_op
from c2v_engine.kernels._tiles import element_tile
from c2v_engine.kernels._triton import jit, readable, tl

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


@jit()
def _accurate_tanh(x: tl.tensor) -> tl.tensor:
    """Accurate to some 2^-22 of the result everywhere, zero included."""
    # Near zero 1 - exp(-2x) would cancel. The polynomial is that of Cephes' tanhf.
    square = x * x
    tail = -5.70498872745e-3 * square + 2.06390887954e-2
    tail = tail * square - 5.37397155531e-2
    tail = tail * square + 1.33314422036e-1
    tail = tail * square - 3.33332819422e-1
    near = x + x * square * tail
    magnitude = tl.abs(x)
    # An exponential that overflows divides to 0.
    far = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    return tl.where(magnitude < 0.625, near, tl.where(x < 0, -far, far))


@jit()
def _activate(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The activation of float32 values."""
    if ACTIVATION == "gelu":
        result = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which does not cancel where tanh(u) is near -1.
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        result = x * (1.0 / (1.0 + tl.exp(-2.0 * u)))
    elif ACTIVATION == "relu":
        result = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "silu":
        result = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        result = _accurate_tanh(x)
    else:
        tl.static_assert(ACTIVATION == "identity")
        result = x
    return result


@jit(do_not_specialize=["tokens"])
def _bias_act_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    bias: tl.tensor,
    tokens: int,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch may hold more than 2^31 elements, so rows are counted in int64.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column_inside = columns < WIDTH
    inside = (rows < tokens)[:, None] & column_inside[None, :]
    at = rows[:, None] * x_stride + columns[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        addend = tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float32)
        values = (values + addend[None, :]).to(x.dtype.element_ty).to(tl.float32)
    result = _activate(values, ACTIVATION)
    tl.store(x + at, result.to(x.dtype.element_ty), mask=inside)


def _triton_form(x: Tensor, bias: Tensor | None, activation: str) -> None:
    tokens, width = x.shape
    if tokens == 0 or (bias is None and activation == "identity"):
        return
    tile = element_tile(width)
    _bias_act_kernel[tile.grid(tokens)](
        x,
        x.stride(0),
        x if bias is None else readable(bias),
        tokens,
        WIDTH=width,
        BIAS=bias is not None,
        ACTIVATION=activation,
        **tile.options,
    )


def _check(x: Tensor, bias: Tensor | None, activation: str) -> None:
    check_rows("x", x, written=True)
    if bias is not None:
        check_like("bias", bias, (x.shape[1],), x)
        check_apart("bias", bias, "x", x)
    if activation not in _IN_PLACE:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"activation is {activation!r}; choose one of {known}")


complete_op(
    "bias_act_",
    "(Tensor(a!) x, Tensor? bias, str activation) -> ()",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
    compiled=False,
)
