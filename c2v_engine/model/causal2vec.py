"""The joined model: encoder, projector, decoder and pooling as one packed forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.kernels.segment_pool import segment_pool
from c2v_engine.model.attention.base import AttentionBackend
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.decoder import Decoder
from c2v_engine.model.encoder import Encoder
from c2v_engine.model.packed_batch import PackedBatch
from c2v_engine.model.pooling import OutputFormat, pool_decoder
from c2v_engine.model.projector import Projector
from c2v_engine.model.rounding import rounded_pooled


@dataclass(frozen=True)
class ContextModel:
    """What makes the contextual token: encoder, its attention, projector."""

    encoder: Encoder
    attention: AttentionBackend
    projector: Projector


class PackedCausal2Vec:
    """From packed token ids to embeddings (arXiv 2507.23386).

    Args:
        config: the checkpoint's.
        decoder: with its weights.
        attention: the decoder's attention backend.
        context: None for templates without ``<context>``.
    """

    def __init__(
        self,
        config: Causal2VecConfig,
        decoder: Decoder,
        attention: AttentionBackend,
        context: ContextModel | None,
    ) -> None:
        self.config = config
        self.decoder = decoder
        self.attention = attention
        self.context = context
        template = config.parsed_template
        # With single rows pooled, as many of every text, the last layer needs only these.
        self.pools_single_rows = all(template.entries[i].format is None for i in template.pooled)

    @property
    def dimension(self) -> int:
        """Width of a whole embedding."""
        return self.config.segments * self.decoder.shape.hidden_size

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one row of the widest activation takes."""
        widths = [2 * self.decoder.shape.intermediate_size]
        if self.context is not None:
            widths.append(self.context.encoder.shape.intermediate_size)
        return max(widths) * self.decoder.norm.element_size()

    @torch.inference_mode()
    def forward(
        self, batch: PackedBatch, output: OutputFormat
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed one batch.

        Args:
            batch: on the model's device.
            output: the format of the embeddings.

        Returns:
            Embeddings ``[texts, segments * keep]`` (or packed bits), and float32 norms ``[texts]``,
            which are not finite where a text's embedding is not.
        """
        contextual = None if self.context is None else _contextual_tokens(self.context, batch)
        hidden_states = self.decoder.forward(
            self.decoder.embed(batch.decoder.token_ids, contextual),
            batch.decoder,
            causal=self.config.attention == "causal",
            attention=self.attention,
            rows=batch.pooled_rows if self.pools_single_rows else None,
        )
        return pool_decoder(
            hidden_states,
            batch,
            self.pools_single_rows,
            self.decoder.norm,
            self.decoder.shape.rms_norm_eps,
            self.config.segments,
            output,
        )


def _contextual_tokens(context: ContextModel, batch: PackedBatch) -> torch.Tensor:
    """``[texts, d]``, and on a CPU some rows more (see ``rounding``)."""
    pooled: torch.Tensor | None = None
    for part in batch.encoder:
        states = context.encoder.forward(part.sequences, context.attention)
        last = part is batch.encoder[-1]
        pooled = segment_pool(
            states,
            part.offsets,
            rows=part.rows,
            partial=pooled,
            counts=batch.encoder_counts if last else None,
            validate=False,  # the packing made the offsets; reading them would wait for the device
        )
    assert pooled is not None
    if pooled.device.type == "cpu":
        pooled = F.pad(pooled, (0, 0, 0, rounded_pooled(len(pooled)) - len(pooled)))
    return context.projector.forward(pooled)
