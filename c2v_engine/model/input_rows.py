"""The decoder's input rows alone: token embeddings and contextual tokens, without its layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from c2v_engine.kernels.prefix_concat import prefix_concat
from c2v_engine.model.causal2vec import ContextModel
from c2v_engine.model.checkpoint import CheckpointDescription, LoadOptions, load_context
from c2v_engine.model.device import made_current
from c2v_engine.model.loading import Placement, WeightLoader
from c2v_engine.model.packed_batch import PackedBatch
from c2v_engine.model.weights import WeightFolder


@dataclass(frozen=True)
class InputRowsModel:
    """What a decoder reads, for those who run its layers elsewhere.

    Attributes:
        embed_tokens: ``[vocab, d]``, the decoder's.
        context: None for templates without ``<context>``.
        placement: where it computes.
    """

    embed_tokens: torch.Tensor
    context: ContextModel | None
    placement: Placement

    @torch.inference_mode()
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """The input rows of a batch, ``[tokens, d]``.

        Args:
            batch: on the model's device, packed without a shared prompt.
        """
        contextual = None
        if self.context is not None:
            contextual = self.context.tokens(batch, self.placement.rounding)
        return prefix_concat(batch.decoder.token_ids, self.embed_tokens, contextual)


def load_input_rows(description: CheckpointDescription, options: LoadOptions) -> InputRowsModel:
    """Load a checkpoint's encoder and projector, and of its decoder the embedding table.

    Args:
        description: what the checkpoint says of itself.
        options: how it is opened.

    Raises:
        CheckpointError: weights or folders do not fit the description.
        BackendError: a device, dtype or backend that can not be used here.
    """
    placement = options.placement(description.stored_dtype)
    shape = description.decoder_shape
    with made_current(placement.device):
        source = WeightFolder(description.decoder_folder)
        prefix = "model." if "model.embed_tokens.weight" in source else ""
        loader = WeightLoader(source, placement, prefix)
        table = loader.tensor("embed_tokens.weight", shape.vocab_size, shape.hidden_size)
        context = None
        if description.config.encoder is not None:
            context = load_context(description, placement, options)
    if placement.device.type == "cuda":
        torch.cuda.synchronize(placement.device)  # other streams will read the weights
    return InputRowsModel(table, context, placement)
