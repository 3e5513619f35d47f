"""Rotary position embedding (arXiv 2104.09864) and its scalings, as transformers computes them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from c2v_engine.errors import UnsupportedError

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def rope_table(
    config: Any, head_dim: int, length: int, where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, for the half-split rotation of the Llama family.

    Args:
        config: the decoder's transformers config.
        head_dim: size D of an attention head.
        length: number of positions.
        where: the folder, for messages.

    Returns:
        ``cos`` and ``sin``, float32 ``[length, D/2]``, attention scaling included.

    Raises:
        UnsupportedError: a rope type or a partial rotation that is not supported.
    """
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in SUPPORTED_ROPE_TYPES:
        known = ", ".join(SUPPORTED_ROPE_TYPES)
        raise UnsupportedError(f"{where}: rope type {rope_type!r} is not supported; known: {known}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{where}: partial_rotary_factor other than 1 is not supported")
    if rope_type == "default":
        base = float(parameters.get("rope_theta", 10000.0))
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        inv_freq, scaling = 1.0 / (base**exponent), 1.0
    else:
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inv_freq.float()
    return angles.cos() * scaling, angles.sin() * scaling
