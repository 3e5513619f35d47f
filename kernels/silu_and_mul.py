"""The gated activation of the Llama family's MLP (SwiGLU, arXiv 2002.05202) in one pass.

With ``round`` for rounding to the tensor's dtype, for every row ``[gate ; up]``:

1. ``s = round(gate / (1 + exp(-gate)))``, computed in float32
2. ``product = round(s * up)``

This is ``silu(gate) * up`` in the rounding order of transformers' MLP.

The op is ``torch.ops.c2v.silu_and_mul``, for inference only: it has no gradient. Its compiled CPU
kernel stands in ``csrc/``; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import check_rows, complete_op

__all__ = ["silu_and_mul", "silu_and_mul_reference"]


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


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``silu_and_mul`` for argument, result and errors.
    """
    _check(gate_up)
    return _pytorch_form(gate_up)


def _pytorch_form(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def _fake(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _check(gate_up: Tensor) -> None:
    check_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise InputError(
            f"gate_up has {gate_up.shape[1]} columns; expected gate and up joined, an even number"
        )


complete_op("silu_and_mul", "(Tensor gate_up) -> Tensor", _pytorch_form, _fake)
