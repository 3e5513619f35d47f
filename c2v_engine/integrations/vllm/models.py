"""The decoders as vLLM's models: stock ones, with a pooler that joins several rows."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from vllm.model_executor.layers.pooler import Pooler  # type: ignore[import-not-found]
from vllm.model_executor.models.adapters import (  # type: ignore[import-not-found]
    as_embedding_model,
)
from vllm.model_executor.models.llama import LlamaForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.mistral import MistralForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM  # type: ignore[import-not-found]

from c2v_engine.integrations.vllm.pooling import pool_prompts


class ContextualPooler(Pooler):  # type: ignore[misc]
    """Joins the rows that ``PoolingParams.extra_kwargs`` names; see ``pool_prompts``."""

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
            raise RuntimeError(
                "rows of a prompt are missing: contextual pooling needs "
                "enable_chunked_prefill=False and enable_prefix_caching=False"
            )
        parameters = pooling_metadata.pooling_params
        return pool_prompts(
            hidden_states,
            cursor.num_scheduled_tokens_cpu.tolist(),
            [one.extra_kwargs for one in parameters],
            [one.use_activation is not False for one in parameters],
        )


class _Contextual:
    """Sets the pooler of vLLM's embedding models."""

    # By this vLLM computes every row of a prompt, in one piece.
    default_seq_pooling_type = "CLS"

    def _init_pooler(self, vllm_config: Any, prefix: str = "") -> ContextualPooler:
        return ContextualPooler()


_Llama: Any = as_embedding_model(LlamaForCausalLM)
_Mistral: Any = as_embedding_model(MistralForCausalLM)
_Qwen2: Any = as_embedding_model(Qwen2ForCausalLM)
_Qwen3: Any = as_embedding_model(Qwen3ForCausalLM)


class Causal2VecLlamaModel(_Contextual, _Llama):  # type: ignore[misc]
    """Llama."""


class Causal2VecMistralModel(_Contextual, _Mistral):  # type: ignore[misc]
    """Mistral."""


class Causal2VecQwen2Model(_Contextual, _Qwen2):  # type: ignore[misc]
    """Qwen2."""


class Causal2VecQwen3Model(_Contextual, _Qwen3):  # type: ignore[misc]
    """Qwen3."""
