"""Summary tokens: learned input rows behind the text that make its embedding (arXiv 2506.04344).

None of them sees another, each sees the text and itself, and the text sees none of them. Packed,
they are so many sequences of one query, whose keys are the text's rows and their own.
"""

from __future__ import annotations

import torch

from c2v_engine.model.loading import Placement, WeightLoader, WeightSource

SUMMARY_NAME = "summary.safetensors"


def load_summary(source: WeightSource, rows: int, width: int, placement: Placement) -> torch.Tensor:
    """Take the input rows of ``summary.safetensors``, ``[rows, d]``.

    Args:
        source: of the weights.
        rows: ``summary_tokens`` of the config.
        width: of the decoder.
        placement: where they serve.

    Raises:
        CheckpointError: weights missing, extra or misshapen, by name.
    """
    weight = WeightLoader(source, placement).tensor("weight", rows, width)
    source.refuse_extra()
    return weight


def untrained_summary(embed_tokens: torch.Tensor, rows: int, seed: int) -> torch.Tensor:
    """Random rows that look like a decoder's token embeddings.

    Args:
        embed_tokens: ``[vocab, d]``.
        rows: how many.
        seed: of the random numbers.

    Returns:
        Float32 ``[rows, d]``, normal, with the mean and deviation of every dimension.
    """
    width, parts = embed_tokens.shape[1], embed_tokens.split(8192)  # in float32 all take gigabytes
    mean = sum((part.float().sum(dim=0) for part in parts), torch.zeros(width)) / len(embed_tokens)
    squares = sum(((part.float() - mean).square().sum(dim=0) for part in parts), torch.zeros(width))
    deviation = (squares / len(embed_tokens)).sqrt()
    generator = torch.Generator().manual_seed(seed)
    return mean + deviation * torch.randn(rows, width, generator=generator)
