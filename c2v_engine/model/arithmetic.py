"""What a decoder's linear layers multiply in, and the passes that prepare their operands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from c2v_engine.kernels.add_rms_norm import add_rms_norm, add_rms_norm_fp8
from c2v_engine.kernels.quantize_rows import quantize_rows_fp8, quantize_rows_int8
from c2v_engine.kernels.silu_and_mul import silu_and_mul, silu_and_mul_fp8
from c2v_engine.model.linear import Linear, Operand, QuantizedRows, make_linear
from c2v_engine.model.loading import Placement
from c2v_engine.model.quantized_linear import Float8Linear, Int8Linear


class Arithmetic(ABC):
    """How operands of linear layers are made, each in the pass that stands before the product.

    Attributes:
        name: of the weights' dtype, as in ``Placement.weights``.
    """

    name: ClassVar[str]

    @abstractmethod
    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> Linear:
        """A layer that takes the operands which the other methods make."""

    @abstractmethod
    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> Operand:
        """Adds x to the residual stream, in place; an operand of the normalised rows."""

    @abstractmethod
    def silu_and_mul(self, gate_up: torch.Tensor) -> Operand:
        """An operand of the gated activation's rows."""

    @abstractmethod
    def operand(self, x: torch.Tensor) -> Operand:
        """An operand of rows that no pass of ours has made."""


class PlainArithmetic(Arithmetic):
    """Products in the dtype of the hidden states."""

    name = "dtype"

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> Linear:
        """See the base class."""
        return make_linear(weight, bias, activation)

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> Operand:
        """See the base class."""
        return add_rms_norm(residual, x, weight, eps=eps)

    def silu_and_mul(self, gate_up: torch.Tensor) -> Operand:
        """See the base class."""
        return silu_and_mul(gate_up)

    def operand(self, x: torch.Tensor) -> Operand:
        """See the base class."""
        return x


class Float8Arithmetic(Arithmetic):
    """Products of float8 rows, quantised in the passes that stand before them."""

    name = "float8"

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> Linear:
        """See the base class."""
        assert activation is None  # no layer of a decoder has one of its own
        return Float8Linear(weight, bias)

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> Operand:
        """See the base class."""
        return QuantizedRows(*add_rms_norm_fp8(residual, x, weight, eps=eps))

    def silu_and_mul(self, gate_up: torch.Tensor) -> Operand:
        """See the base class."""
        return QuantizedRows(*silu_and_mul_fp8(gate_up))

    def operand(self, x: torch.Tensor) -> Operand:
        """See the base class."""
        return QuantizedRows(*quantize_rows_fp8(x))


class Int8Arithmetic(Arithmetic):
    """Products of rows of bytes, on the CPU."""

    name = "int8"

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> Linear:
        """See the base class."""
        assert activation is None
        return Int8Linear(weight, bias)

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> Operand:
        """See the base class."""
        return self.operand(add_rms_norm(residual, x, weight, eps=eps))

    def silu_and_mul(self, gate_up: torch.Tensor) -> Operand:
        """See the base class."""
        return self.operand(silu_and_mul(gate_up))

    def operand(self, x: torch.Tensor) -> Operand:
        """See the base class."""
        return QuantizedRows(*quantize_rows_int8(x))


def make_arithmetic(placement: Placement) -> Arithmetic:
    """The arithmetic of a decoder's linear layers where it is placed."""
    kinds = (PlainArithmetic, Float8Arithmetic, Int8Arithmetic)
    return {kind.name: kind for kind in kinds}[placement.weights]()
