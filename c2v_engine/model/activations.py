"""Activations by the names that transformers configs and projectors give them."""

from __future__ import annotations

from c2v_engine.errors import UnsupportedError

ACTIVATIONS: dict[str, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "identity": "identity",
}


def get_activation(name: str, where: str) -> str:
    """The activation of that name, as the kernels call it.

    Raises:
        UnsupportedError: an unknown name.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedError(f"{where}: activation {name!r} is not supported; known are {known}")
    return ACTIVATIONS[name]
