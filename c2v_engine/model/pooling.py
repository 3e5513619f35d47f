"""The pooling of decoder rows into the embedding, and what an embedding looks like."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from c2v_engine.kernels.dual_token_pool import Precision, dual_token_pool
from c2v_engine.model.packed_batch import PackedBatch


@dataclass(frozen=True)
class OutputFormat:
    """What an embedding looks like.

    Attributes:
        keep: leading dimensions kept of each part, ``d`` at most.
        normalize: whether the vector is L2-normalised, after truncation.
        precision: of the output.
        ranges: float32 ``[2, segments * keep]``, minimum and maximum of every dimension, for int8
            and uint8.
    """

    keep: int
    normalize: bool = True
    precision: Precision = "float32"
    ranges: torch.Tensor | None = None


def pool_decoder(
    hidden_states: torch.Tensor,
    batch: PackedBatch,
    pruned: bool,
    norm_weight: torch.Tensor,
    eps: float,
    segments: int,
    output: OutputFormat,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final norm, gather, concatenate, normalise, write: one op.

    Args:
        hidden_states: ``[rows, d]`` before the final norm: all rows, or the pooled ones alone.
        batch: what they belong to.
        pruned: whether they are the pooled ones alone.
        norm_weight: ``[d]`` of the final RMSNorm.
        eps: its epsilon.
        segments: parts of an embedding.
        output: the format.

    Returns:
        Embeddings ``[texts, segments * keep]`` (or packed bits) in the output's dtype, and float32
        norms ``[texts]``, which are not finite where a text's embedding is not.
    """
    rows = batch.pooled_rows
    if pruned:
        rows = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    return dual_token_pool(
        hidden_states,
        rows,
        batch.pooled_offsets,
        norm_weight,
        eps=eps,
        segments=segments,
        keep=output.keep,
        normalize=output.normalize,
        precision=output.precision,
        ranges=output.ranges,
        validate=False,  # the packing made rows and offsets; reading them would wait for the device
    )
