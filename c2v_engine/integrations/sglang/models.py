"""The decoders as SGLang's models: stock ones, with a pooler that joins two rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.pooler import EmbeddingPoolerOutput  # type: ignore[import-not-found]
from sglang.srt.models.llama import LlamaForCausalLM  # type: ignore[import-not-found]
from sglang.srt.models.mistral import MistralForCausalLM  # type: ignore[import-not-found]
from sglang.srt.models.qwen2 import Qwen2ForCausalLM  # type: ignore[import-not-found]
from sglang.srt.models.qwen3 import Qwen3ForCausalLM  # type: ignore[import-not-found]

from c2v_engine.integrations.sglang.pooling import pool_sequences

_BASE = "model."
_HEAD = "lm_head."


class ContextualPooler(torch.nn.Module):
    """Joins the overridden row of each sequence and its last; see ``pool_sequences``.

    Args:
        normalize: whether the joined vector is normalised.
    """

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, hidden_states: torch.Tensor, forward_batch: Any) -> Any:
        """Pool a batch.

        Args:
            hidden_states: ``[tokens, d]``, after the final norm.
            forward_batch: SGLang's.

        Returns:
            An ``EmbeddingPoolerOutput`` with a vector of each sequence.
        """
        return EmbeddingPoolerOutput(
            embeddings=pool_sequences(
                hidden_states,
                forward_batch.extend_seq_lens,
                forward_batch.replace_positions,
                forward_batch.dimensions,
                normalize=self.normalize,
            )
        )


class _Contextual:
    """Sets the pooler, and takes the weights of a base model, whose names have no prefix."""

    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(config, **options)  # type: ignore[call-arg]
        self.pooler = ContextualPooler(getattr(config, "causal2vec_normalize", True))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Load weights by their names in a checkpoint."""
        named = (
            (name if name.startswith((_BASE, _HEAD)) else _BASE + name, weight)
            for name, weight in weights
        )
        return super().load_weights(named)  # type: ignore[misc]


class Causal2VecLlama(_Contextual, LlamaForCausalLM):  # type: ignore[misc]
    """Llama."""


class Causal2VecMistral(_Contextual, MistralForCausalLM):  # type: ignore[misc]
    """Mistral."""


class Causal2VecQwen2(_Contextual, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2."""


class Causal2VecQwen3(_Contextual, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3."""


EntryClass = [Causal2VecLlama, Causal2VecMistral, Causal2VecQwen2, Causal2VecQwen3]
