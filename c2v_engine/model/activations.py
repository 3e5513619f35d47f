"""Activations by the names that transformers configs and projectors give them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.errors import UnsupportedError

# Overwrites its argument and gives it back: these are the widest tensors of a forward, and fresh
# memory for them costs a CPU more than the arithmetic.
Activation = Callable[[torch.Tensor], torch.Tensor]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.gelu_(x)  # type: ignore[no-any-return]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.gelu_(x, approximate="tanh")  # type: ignore[no-any-return]


def silu_(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(x)``, in place."""
    return F.silu(x, inplace=True)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu_,
    "silu": silu_,
    "swish": silu_,
    "tanh": torch.tanh_,
    "identity": _identity,
}


def get_activation(name: str, where: str) -> Activation:
    """The activation of that name, elementwise and in place on a tensor of any shape.

    Raises:
        UnsupportedError: an unknown name.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedError(f"{where}: activation {name!r} is not supported; known are {known}")
    return ACTIVATIONS[name]
