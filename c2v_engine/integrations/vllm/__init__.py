"""A checkpoint's decoder in vLLM, on the engine's input rows (written for vLLM 0.33).

vLLM loads this package's ``register`` by the entry point ``vllm.general_plugins``; it adds the
decoders that pool a contextual token. The rows go in as ``prompt_embeds``, one prompt a text, and
which of them are pooled goes along in the pooling parameters:

```python
inputs = ContextualInputs.from_pretrained("my-model", device="cuda")
llm = vllm.LLM(**vllm_options("my-model"))
prompts, parameters = vllm_requests(inputs, texts, prompt_name="query")
outputs = llm.embed(prompts, pooling_params=parameters)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c2v_engine.errors import MissingPackageError
from c2v_engine.integrations.contextual import ContextualInputs, describe_plain
from c2v_engine.runtime.options import resolve_keep, resolve_normalize

ARCHITECTURES = {
    "llama": "Causal2VecLlamaModel",
    "mistral": "Causal2VecMistralModel",
    "qwen2": "Causal2VecQwen2Model",
    "qwen3": "Causal2VecQwen3Model",
}


def register() -> None:
    """Add the decoders that pool a contextual token to vLLM's models; called by vLLM, repeatedly.

    They are named, not imported: a model imported before vLLM forks would keep it from using CUDA.
    """
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    for name in ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"{__name__}.models:{name}")


def vllm_options(model: str | Path | None = None) -> dict[str, Any]:
    """What ``vllm.LLM`` or ``vllm.AsyncEngineArgs`` is called with to run a checkpoint's decoder.

    Args:
        model: a checkpoint's folder or Hub name; None for the default model.

    Raises:
        ConfigError: the checkpoint's ``config.json`` is missing or wrong.
        CheckpointError: there is no such model.
        UnsupportedError: its decoder's attention is bidirectional, or it has an adapter.
    """
    description = describe_plain(model)
    config, shape = description.config, description.decoder_shape
    return {
        "model": str(description.decoder_folder),
        "runner": "pooling",
        "enable_prompt_embeds": True,
        "max_model_len": config.max_length,
        # Hidden states of pooled rows must all be there when the last one is.
        "enable_chunked_prefill": False,
        "enable_prefix_caching": False,
        "hf_overrides": {
            "architectures": [ARCHITECTURES[description.decoder_config.model_type]],
            "embedding_size": config.segments * shape.hidden_size,
        },
    }


def vllm_requests(
    inputs: ContextualInputs,
    texts: Sequence[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    normalize_embeddings: bool | None = None,
    truncate_dim: int | None = None,
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The prompts and pooling parameters by which vLLM embeds texts.

    Args:
        inputs: makes the rows.
        texts: any number.
        prompt_name: as in ``Causal2Vec.encode``, and so are the rest.
        prompt: as there.
        normalize_embeddings: as there.
        truncate_dim: as there.

    Returns:
        For each text ``{"prompt_embeds": [rows, d]}`` and its ``vllm.PoolingParams``.

    Raises:
        TextError: a text that can not be embedded, named by its row.
        InputError: options that can not be.
        MissingPackageError: vLLM is not installed.
    """
    try:
        from vllm import PoolingParams
    except ImportError as error:
        raise MissingPackageError("vllm", "vllm") from error

    config = inputs.config
    width = inputs.description.decoder_shape.hidden_size
    normalize = resolve_normalize(normalize_embeddings, config.normalize)
    keep = resolve_keep(truncate_dim, config.segments, width)
    prompts, parameters = [], []
    for one in inputs(texts, prompt_name, prompt):
        prompts.append({"prompt_embeds": one.rows})
        pooled = [list(part) for part in one.pooled]
        parameters.append(
            PoolingParams(use_activation=normalize, extra_kwargs={"pooled": pooled, "keep": keep})
        )
    return prompts, parameters
