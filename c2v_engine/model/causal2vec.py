"""The joined model: encoder, projector, decoder and pooling as one packed forward."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.kernels.segment_pool import segment_pool
from c2v_engine.model.attention.base import AttentionBackend
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.decoder import Decoder, PromptStates
from c2v_engine.model.encoder import Encoder
from c2v_engine.model.packed_batch import PackedBatch, PackedSequences
from c2v_engine.model.pooling import OutputFormat, pool_decoder
from c2v_engine.model.projector import Projector
from c2v_engine.model.rounding import Rounding, in_pieces
from c2v_engine.model.stages import stage

# Prompts whose states are kept: one of 32 rows of a 7B decoder takes 4 MB.
_KEPT_PROMPTS = 8


@dataclass(frozen=True)
class ContextModel:
    """What makes the contextual token: encoder, its attention, projector."""

    encoder: Encoder
    attention: AttentionBackend
    projector: Projector

    def tokens(self, batch: PackedBatch, rounding: Rounding) -> torch.Tensor:
        """The contextual tokens of a batch.

        Args:
            batch: on the model's device.
            rounding: of row counts.

        Returns:
            ``[texts, d]``, and some rows more (see ``rounding``).
        """
        pooled: torch.Tensor | None = None
        for part in batch.encoder:
            states = self.encoder.forward(part.sequences, self.attention)
            last = part is batch.encoder[-1]
            with stage("encoder.pool"):
                pooled = segment_pool(
                    states,
                    part.offsets,
                    rows=part.rows,
                    partial=pooled,
                    counts=batch.encoder_counts if last else None,
                    validate=False,  # the packing made the offsets; reading them would wait
                )
        assert pooled is not None
        missing = rounding.pooled(len(pooled)) - len(pooled)
        with stage("projector"):
            return self.projector.forward(F.pad(pooled, (0, 0, 0, missing)))


class PackedCausal2Vec:
    """From packed token ids to embeddings (arXiv 2507.23386).

    Args:
        config: the checkpoint's.
        decoder: with its weights.
        attention: the decoder's attention backend.
        context: None for templates without ``<context>``.
        rounding: of row counts.
        summary: input rows of the summary tokens, ``[k, d]``; None without any.
    """

    def __init__(
        self,
        config: Causal2VecConfig,
        decoder: Decoder,
        attention: AttentionBackend,
        context: ContextModel | None,
        rounding: Rounding,
        summary: torch.Tensor | None = None,
    ) -> None:
        self.config = config
        self.decoder = decoder
        self.attention = attention
        self.context = context
        self.rounding = rounding
        self.summary = summary
        # With single rows pooled, as many of every text, the last layer needs only these.
        self.pools_single_rows = config.parsed_template.pools_single_rows
        self._prompts: OrderedDict[tuple[int, ...], PromptStates] = OrderedDict()

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

    @property
    def peak_bytes_per_token(self) -> int:
        """Bytes that one row takes of all activations that are alive together, at most.

        Of the decoder these are the residual stream, the normalised rows and either Q, K and V,
        attention's output and what its kernel copies of K and V, or gate, up and their product;
        of the encoder likewise.
        """
        shape = self.decoder.shape
        d, kv = shape.hidden_size, 2 * shape.key_size
        attending = (
            2 * shape.query_size
            + kv
            + kv * (shape.num_attention_heads // shape.num_key_value_heads)
        )
        if self.config.parsed_template.splits_summary:
            # Each summary token has a copy of its text's keys, which some kernels repeat.
            group = shape.num_attention_heads // shape.num_key_value_heads
            attending += self.config.summary_tokens * kv * (1 + group)
        widths = [3 * d + max(attending, 3 * shape.intermediate_size)]
        if self.context is not None:
            encoder = self.context.encoder.shape
            k = encoder.hidden_size
            widths.append(3 * k + max(4 * k, encoder.intermediate_size + k))
        return max(widths) * self.decoder.norm.element_size()

    def prompt_cost(self, prompt_rows: int) -> int:
        """Rows whose activations take as much memory as a text's copy of a prompt's keys.

        Args:
            prompt_rows: of the prompt.
        """
        shape = self.decoder.shape
        heads = shape.num_attention_heads // shape.num_key_value_heads
        # As they are put together, and as a kernel without grouped heads repeats them.
        copied = 2 * shape.key_size * (1 + heads) * self.decoder.norm.element_size()
        if self.config.parsed_template.splits_summary:
            copied *= 1 + self.config.summary_tokens
        return -(-prompt_rows * copied // self.peak_bytes_per_token)

    @torch.inference_mode()
    def prompt_states(self, token_ids: tuple[int, ...]) -> PromptStates:
        """What texts need of the prompt rows that they all begin with.

        Computed once for each of the last few prompts. They belong to this model's weights, so
        nothing has to be told when another model, or dtype, takes its place.

        Args:
            token_ids: of the rows; without a contextual token.
        """
        states = self._prompts.get(token_ids)
        if states is None:
            device = self.decoder.norm.device
            rows = self.rounding.tokens(len(token_ids))
            # None longer than the prompt, so that every position is in the rotary table.
            fillers = in_pieces(rows - len(token_ids), len(token_ids))
            lengths = np.array([len(token_ids), *fillers], dtype=np.int64)
            ids = np.zeros(rows, dtype=np.int32)
            ids[: len(token_ids)] = token_ids
            positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
            ends = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
            on_device = [torch.from_numpy(part).to(device) for part in (ids, positions, ends)]
            sequences = PackedSequences(
                on_device[0], on_device[1], on_device[2], lengths, len(lengths) - 1
            )
            states = self.decoder.prompt_states(token_ids, sequences, self.attention)
            self._prompts[token_ids] = states
            while len(self._prompts) > _KEPT_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(token_ids)
        return states

    def _given_rows(self, batch: PackedBatch) -> torch.Tensor | None:
        """The input rows that are no tokens of the vocabulary: summary, then contextual ones."""
        if self.context is None:
            return self.summary
        contextual = self.context.tokens(batch, self.rounding)
        return contextual if self.summary is None else torch.cat((self.summary, contextual))

    @torch.inference_mode()
    def forward(
        self, batch: PackedBatch, output: OutputFormat, prompt: PromptStates | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed one batch.

        Args:
            batch: on the model's device.
            output: the format of the embeddings.
            prompt: what its sequences begin with, where they were packed without it.

        Returns:
            Embeddings ``[texts, segments * keep]`` (or packed bits), and float32 norms ``[texts]``,
            which are not finite where a text's embedding is not.
        """
        given = self._given_rows(batch)
        with stage("embed"):
            hidden_states = self.decoder.embed(batch.decoder.token_ids, given)
        hidden_states = self.decoder.forward(
            hidden_states,
            batch.decoder,
            causal=self.config.attention == "causal",
            attention=self.attention,
            rows=batch.pooled_rows if self.pools_single_rows else None,
            prompt=prompt,
        )
        with stage("pool"):
            return pool_decoder(
                hidden_states,
                batch,
                self.pools_single_rows,
                self.decoder.norm,
                self.decoder.shape.rms_norm_eps,
                self.config.segments,
                output,
            )
