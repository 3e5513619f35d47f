"""The decoders as SGLang's models: stock ones, with a pooler that joins two rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from sglang.srt.layers.pooler import EmbeddingPoolerOutput  # type: ignore[import-not-found]
from sglang.srt.models.llama import LlamaForCausalLM  # type: ignore[import-not-found]
from sglang.srt.models.mistral import MistralForCausalLM  # type: ignore[import-not-found]
from sglang.srt.models.qwen2 import Qwen2ForCausalLM  # type: ignore[import-not-found]
from sglang.srt.models.qwen3 import Qwen3ForCausalLM  # type: ignore[import-not-found]

_BASE = "model."
_HEAD = "lm_head."


class ContextualPooler(torch.nn.Module):
    """Joins the overridden row of each sequence and its last to one vector, and normalises that.

    Args:
        normalize: whether it does.
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
        ends = torch.cumsum(forward_batch.extend_seq_lens, dim=0)
        # A sequence without an override, as in the server's trial runs, has its first row taken.
        rows = ends - forward_batch.extend_seq_lens
        replaced = forward_batch.replace_positions
        if replaced is not None:
            rows = rows.index_copy(0, torch.searchsorted(ends, replaced, right=True), replaced)
        pooled = torch.stack([hidden_states[rows], hidden_states[ends - 1]], dim=1).float()
        dimensions = forward_batch.dimensions or [None] * len(pooled)
        keeps = [pooled.shape[2] if d is None else d // 2 for d in dimensions]
        if len(set(keeps)) == 1:
            return EmbeddingPoolerOutput(embeddings=self._joined(pooled[..., : keeps[0]]))
        parts = zip(pooled.split(1), keeps, strict=True)
        return EmbeddingPoolerOutput(
            embeddings=[self._joined(one[..., :keep])[0] for one, keep in parts]
        )

    def _joined(self, pooled: torch.Tensor) -> torch.Tensor:
        embeddings = pooled.flatten(1)
        return F.normalize(embeddings, dim=1) if self.normalize else embeddings


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
