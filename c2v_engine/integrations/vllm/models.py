"""The decoders as vLLM's models: stock ones, with a pooler that joins several rows."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from vllm.model_executor.layers.pooler import Pooler  # type: ignore[import-not-found]
from vllm.model_executor.models.adapters import (  # type: ignore[import-not-found]
    as_embedding_model,
)
from vllm.model_executor.models.llama import LlamaForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.mistral import MistralForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM  # type: ignore[import-not-found]


class ContextualPooler(Pooler):  # type: ignore[misc]
    """Joins the pooled rows of each prompt to one vector, and normalises that.

    ``PoolingParams.extra_kwargs`` says which: ``pooled``, a list of ``[start, end]``, and ``keep``,
    how many dimensions of each stay. Without it, as in vLLM's trial runs, it is the first row and
    the last.
    """

    def get_supported_tasks(self) -> Set[Any]:
        """Embedding texts, and no other."""
        return {"embed"}

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor]:
        """Pool a batch.

        Args:
            hidden_states: ``[tokens, d]``, after the final norm.
            pooling_metadata: vLLM's, with a cursor.

        Returns:
            For each prompt a float32 vector.

        Raises:
            RuntimeError: a prompt is not there as a whole.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise RuntimeError("rows of a prompt are missing: serve with enable_chunked_prefill=0")
        embeddings = []
        lengths = cursor.num_scheduled_tokens_cpu.tolist()
        for states, parameters in zip(
            hidden_states.split(lengths), pooling_metadata.pooling_params, strict=True
        ):
            extra = parameters.extra_kwargs or {}
            pooled = extra.get("pooled", [[0, 1], [len(states) - 1, len(states)]])
            keep = extra.get("keep", states.shape[1])
            parts = [states[start:end, :keep].float().mean(dim=0) for start, end in pooled]
            embedding = torch.cat(parts)
            if parameters.use_activation is not False:
                embedding = F.normalize(embedding, dim=0)
            embeddings.append(embedding)
        return embeddings


class _Contextual:
    """Sets the pooler of vLLM's embedding models."""

    # Has vLLM compute every row of a prompt, in one piece.
    default_seq_pooling_type = "CLS"

    def _init_pooler(self, vllm_config: Any, prefix: str = "") -> ContextualPooler:
        return ContextualPooler()


class Causal2VecLlamaModel(_Contextual, as_embedding_model(LlamaForCausalLM)):  # type: ignore[misc]
    """Llama."""


class Causal2VecMistralModel(  # type: ignore[misc]
    _Contextual, as_embedding_model(MistralForCausalLM)
):
    """Mistral."""


class Causal2VecQwen2Model(_Contextual, as_embedding_model(Qwen2ForCausalLM)):  # type: ignore[misc]
    """Qwen2."""


class Causal2VecQwen3Model(_Contextual, as_embedding_model(Qwen3ForCausalLM)):  # type: ignore[misc]
    """Qwen3."""
