"""The projector: from the encoder's pooled state to the contextual token."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.kernels.bias_act import bias_act_
from c2v_engine.model.activations import get_activation
from c2v_engine.model.config import ProjectorConfig
from c2v_engine.model.weights import WeightFolder

PROJECTOR_NAME = "projector.safetensors"


class Projector:
    """``c = W2 act(W1 h + b1) + b2`` (arXiv 2507.23386, section 3).

    Args:
        config: hidden size, activation and whether biases exist.
        weights: ``linear_1.weight`` ``[p, k]``, ``linear_2.weight`` ``[d, p]`` and their biases.
    """

    def __init__(self, config: ProjectorConfig, weights: dict[str, torch.Tensor]) -> None:
        self._weights = weights
        self._activation = get_activation(config.activation, "projector")

    @classmethod
    def load(
        cls,
        directory: Path,
        config: ProjectorConfig,
        encoder_size: int,
        decoder_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Projector:
        """Read ``projector.safetensors``.

        Args:
            directory: of the checkpoint.
            config: the projector's section.
            encoder_size: width k of the encoder.
            decoder_size: width d of the decoder.
            dtype: of the computation.
            device: where the weights go.

        Raises:
            CheckpointError: weights missing, extra or misshapen, by name.
        """
        folder = WeightFolder(directory, PROJECTOR_NAME)
        shapes = projector_shapes(config, encoder_size, decoder_size)
        weights = {n: folder.take(n, s).to(device, dtype) for n, s in shapes.items()}
        folder.refuse_extra()
        return cls(config, weights)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Contextual tokens ``[texts, d]`` of pooled encoder states ``[texts, k]``."""
        w = self._weights
        hidden = F.linear(pooled, w["linear_1.weight"], w.get("linear_1.bias"))
        bias_act_(hidden, None, activation=self._activation)
        return F.linear(hidden, w["linear_2.weight"], w.get("linear_2.bias"))


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
