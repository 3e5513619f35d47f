"""Linear layers as the forward calls them: whatever a weight is stored in, rows in and rows out."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.kernels.bias_act import bias_act_

# Activations that oneDNN applies to a product before it is stored, by our names: its own name and
# its variant.
_ONEDNN_ACTIVATIONS = {
    None: ("none", ""),
    "identity": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
}


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of 8-bit values with a scale each, as some layers take them.

    Attributes:
        values: ``[rows, columns]``.
        scales: float32 ``[rows, 1]``.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the values."""
        return self.values.shape

    def split(self, rows: int) -> list[QuantizedRows]:
        """Blocks of so many rows."""
        parts = zip(self.values.split(rows), self.scales.split(rows), strict=True)
        return [QuantizedRows(values, scales) for values, scales in parts]

    def take(self, rows: torch.Tensor) -> QuantizedRows:
        """Chosen rows."""
        # Bytes, for not every device can index 8-bit floats.
        values = self.values.view(torch.uint8).index_select(0, rows).view(self.values.dtype)
        return QuantizedRows(values, self.scales.index_select(0, rows))


Operand = torch.Tensor | QuantizedRows
"""What a layer multiplies: rows in the model's dtype, or quantised ones."""
_Rows = TypeVar("_Rows", torch.Tensor, QuantizedRows, Operand)


def take_rows(x: Operand, rows: torch.Tensor) -> Operand:
    """Chosen rows of an operand."""
    return x.take(rows) if isinstance(x, QuantizedRows) else x.index_select(0, rows)


class Linear(ABC):
    """``act(x W^T + b)`` of ``[rows, in]``, giving ``[rows, out]``.

    Attributes:
        num_parameters: of weight and bias.
    """

    num_parameters: int

    @abstractmethod
    def __call__(self, x: Operand) -> torch.Tensor:
        """The layer's output rows, in new memory, of the kind of operand that it is made for."""


class PlainLinear(Linear):
    """A weight as the checkpoint has it, multiplied by whatever library torch calls.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        activation: of ``bias_act_``, or None.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> None:
        self._weight = weight
        self._bias = bias
        self._activation = activation
        self.num_parameters = weight.numel() + (0 if bias is None else bias.numel())

    def __call__(self, x: Operand) -> torch.Tensor:
        """See the base class."""
        assert isinstance(x, torch.Tensor)
        product = F.linear(x, self._weight, self._bias)
        if self._activation is not None:
            bias_act_(product, None, activation=self._activation)
        return product


class OnednnLinear(Linear):
    """A weight laid out once as oneDNN multiplies it, where a plain one is laid out at every call.

    With few rows that is half of the work: on two cores with AVX-512 BF16 a bfloat16 product of 16
    rows takes half the time of ``F.linear``, one of 1,024 rows 93%; float32 likewise. These are the
    ops that torch's own compiler emits for linear layers on CPUs.

    Args:
        weight: ``[out, in]`` on the CPU; not kept.
        bias: ``[out]`` or None.
        activation: of ``bias_act_``, or None.
    """

    # For how many rows the layout is chosen; it serves any number.
    _ROWS = 1024

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, self._ROWS)
        self._bias = bias
        self._activation = _ONEDNN_ACTIVATIONS[activation]
        self.num_parameters = weight.numel() + (0 if bias is None else bias.numel())

    def __call__(self, x: Operand) -> torch.Tensor:
        """See the base class."""
        name, variant = self._activation
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, name, [], variant
        )
        return product


@cache
def onednn_serves(dtype: torch.dtype) -> bool:
    """Whether ``OnednnLinear`` can take a dtype on this CPU."""
    ops = torch.ops.mkldnn
    there = hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")
    if not there or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def make_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
) -> Linear:
    """The linear layer that serves fastest in a weight's own dtype and on its device.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        activation: of ``bias_act_``, or None.
    """
    if weight.device.type == "cpu" and weight.numel() and onednn_serves(weight.dtype):
        return OnednnLinear(weight, bias, activation)
    return PlainLinear(weight, bias, activation)


def by_blocks(
    function: Callable[[_Rows], torch.Tensor], x: _Rows, block_rows: int | None
) -> torch.Tensor:
    """Applies a function of rows to blocks of so many, so that its products have one shape always.

    Which of its kernels a library takes, and so the order of its sums, depends on the shape. With
    one shape a row's result depends on nothing but the row, where a library adds up alike wherever
    in the block a row stands: what deterministic mode is built on, and what tests ask of it.

    Args:
        function: from ``[block_rows, in]`` to ``[block_rows, out]``, row by row.
        x: ``[rows, in]``, a whole number of blocks.
        block_rows: None applies the function at once.
    """
    if block_rows is None:
        return function(x)
    assert x.shape[0] % block_rows == 0, (x.shape, block_rows)
    if x.shape[0] == block_rows:
        return function(x)
    return torch.cat([function(block) for block in x.split(block_rows)])
