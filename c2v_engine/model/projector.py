"""The projector: from the encoder's pooled state to the contextual token."""

from __future__ import annotations

import torch

from c2v_engine.model.activations import get_activation
from c2v_engine.model.config import ProjectorConfig
from c2v_engine.model.linear import Linear, by_blocks
from c2v_engine.model.loading import Placement, WeightLoader, WeightSource
from c2v_engine.model.rounding import Rounding

PROJECTOR_NAME = "projector.safetensors"


class Projector:
    """``c = W2 act(W1 h + b1) + b2`` (arXiv 2507.23386, section 3).

    Args:
        first: ``act(W1 h + b1)``.
        second: ``W2 h + b2``.
        rounding: of row counts.
    """

    def __init__(self, first: Linear, second: Linear, rounding: Rounding) -> None:
        self._first = first
        self._second = second
        self._block_rows = rounding.block_rows

    @classmethod
    def load(
        cls,
        source: WeightSource,
        config: ProjectorConfig,
        encoder_size: int,
        decoder_size: int,
        placement: Placement,
    ) -> Projector:
        """Take the weights of ``projector.safetensors``.

        Args:
            source: of the weights.
            config: the projector's section.
            encoder_size: width k of the encoder.
            decoder_size: width d of the decoder.
            placement: where it computes.

        Raises:
            CheckpointError: weights missing, extra or misshapen, by name.
        """
        loader = WeightLoader(source, placement)
        p, bias = config.hidden_size, config.bias
        activation = get_activation(config.activation, "projector")
        first = loader.linear([("linear_1", p)], encoder_size, bias=bias, activation=activation)
        second = loader.linear([("linear_2", decoder_size)], p, bias=bias)
        source.refuse_extra()
        return cls(first, second, placement.rounding)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Contextual tokens ``[texts, d]`` of pooled encoder states ``[texts, k]``."""
        return by_blocks(lambda rows: self._second(self._first(rows)), pooled, self._block_rows)


def projector_shapes(
    config: ProjectorConfig, encoder_size: int, decoder_size: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the projector's tensors."""
    p = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"linear_1.weight": (p, encoder_size)}
    if config.bias:
        shapes["linear_1.bias"] = (p,)
    shapes["linear_2.weight"] = (decoder_size, p)
    if config.bias:
        shapes["linear_2.bias"] = (decoder_size,)
    return shapes
