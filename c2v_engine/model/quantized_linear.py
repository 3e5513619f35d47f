"""Linear layers whose weights have 8 bits, with a scale for every output channel."""

from __future__ import annotations

import torch

from c2v_engine.errors import InputError, UnsupportedError
from c2v_engine.kernels.linear_fp8 import linear_fp8, quantize_weight_fp8
from c2v_engine.kernels.linear_int8 import linear_int8, pack_weight_int8
from c2v_engine.model.linear import Linear, Operand, QuantizedRows


class Float8Linear(Linear):
    """``c2v_engine.kernels.linear_fp8``: float8 rows and weights, bfloat16 out.

    Args:
        weight: ``[out, in]``; not kept.
        bias: ``[out]`` bfloat16 or None.

    Raises:
        UnsupportedError: sizes that the product can not have.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        try:
            self._weight, self._scales = quantize_weight_fp8(weight)
        except InputError as error:
            raise UnsupportedError(f"this decoder can not be computed in float8: {error}") from None
        self._bias = bias
        self.num_parameters = weight.numel() + (0 if bias is None else bias.numel())

    def __call__(self, x: Operand) -> torch.Tensor:
        """See the base class."""
        assert isinstance(x, QuantizedRows)
        return linear_fp8(x.values, x.scales, self._weight, self._scales, self._bias)


class Int8Linear(Linear):
    """``c2v_engine.kernels.linear_int8``: rows and weights of bytes, on the CPU.

    Args:
        weight: ``[out, in]``, whose dtype is the output's; not kept.
        bias: ``[out]`` or None.

    Raises:
        UnsupportedError: sizes that the product can not have.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        try:
            self._weight = pack_weight_int8(weight)
        except InputError as error:
            raise UnsupportedError(f"this decoder can not be computed in int8: {error}") from None
        self._bias = bias
        self._dtype = weight.dtype
        self.num_parameters = weight.numel() + (0 if bias is None else bias.numel())

    def __call__(self, x: Operand) -> torch.Tensor:
        """See the base class."""
        assert isinstance(x, QuantizedRows)
        return linear_int8(x.values, x.scales, self._weight, self._bias, self._dtype)
