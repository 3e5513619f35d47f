"""A checkpoint's decoder in SGLang, with its contextual tokens as ``embed_overrides`` (0.5.23).

SGLang reads token ids and puts given vectors in the place of one of them. Its own embedding models
give the last row; with ``SGLANG_EXTERNAL_MODEL_PACKAGE=c2v_engine.integrations.sglang`` it has
decoders that join the contextual row and the last one. So a text is embedded by a request to
``/v1/embeddings`` of a server that ``sglang_command`` starts:

```python
inputs = ContextualInputs.from_pretrained("my-model")
body = sglang_request(inputs, texts, prompt_name="query")
vectors = httpx.post("http://localhost:30000/v1/embeddings", json=body).json()["data"]
```
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2v_engine.errors import UnsupportedError
from c2v_engine.integrations.contextual import ContextualInputs, describe_plain
from c2v_engine.model.checkpoint import CheckpointDescription
from c2v_engine.model.template import CONTEXT
from c2v_engine.runtime.options import resolve_keep

ARCHITECTURES = {
    "llama": "Causal2VecLlama",
    "mistral": "Causal2VecMistral",
    "qwen2": "Causal2VecQwen2",
    "qwen3": "Causal2VecQwen3",
}

# The server takes sequences that are this much shorter than its context, which has room for output.
_RESERVED = 8


def sglang_options(model: str | Path | None = None) -> dict[str, Any]:
    """The fields of SGLang's ``ServerArgs`` by which it runs a checkpoint's decoder.

    Args:
        model: a checkpoint's folder or Hub name; None for the default model.

    Raises:
        ConfigError: the checkpoint's ``config.json`` is missing or wrong.
        CheckpointError: there is no such model.
        UnsupportedError: a decoder, template or pooling that can not be had of SGLang.
    """
    description = describe_plain(model)
    _check_template(description)
    config = description.config
    override = {
        "architectures": [ARCHITECTURES[description.decoder_config.model_type]],
        "causal2vec_normalize": config.normalize,
        "is_matryoshka": True,
    }
    return {
        "model_path": str(description.decoder_folder),
        "is_embedding": True,
        "context_length": config.max_length + _RESERVED,
        # Both pooled rows must be in one pass.
        "chunked_prefill_size": -1,
        "json_model_override_args": json.dumps(override),
    }


def sglang_command(model: str | Path | None = None) -> list[str]:
    """The command that starts SGLang's server with those options.

    The environment needs ``SGLANG_EXTERNAL_MODEL_PACKAGE=c2v_engine.integrations.sglang``.

    Args:
        model: as in ``sglang_options``, and so is what is raised.
    """
    command = ["python", "-m", "sglang.launch_server"]
    for name, value in sglang_options(model).items():
        command.append(f"--{name.replace('_', '-')}")
        command += [] if value is True else [str(value)]
    return command


def sglang_request(
    inputs: ContextualInputs,
    texts: Sequence[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    truncate_dim: int | None = None,
) -> dict[str, Any]:
    """The body of a request to ``/v1/embeddings`` that embeds texts.

    Its ``dimensions`` are those of one half: SGLang allows no more than the decoder is wide, and
    takes so many for a request that names none and is computed together with one that does.

    Args:
        inputs: makes the contextual tokens.
        texts: at least one.
        prompt_name: as in ``Causal2Vec.encode``, and so are the rest.
        prompt: as there.
        truncate_dim: as there.

    Raises:
        TextError: a text that can not be embedded, named by its row.
        InputError: options that can not be.
        UnsupportedError: a template or pooling that can not be had of SGLang.
    """
    description = inputs.description
    _check_template(description)
    made = inputs(texts, prompt_name, prompt)
    placeholder = _unused_id([one.token_ids for one in made])
    for one in made:
        one.token_ids[list(one.contextual)] = placeholder
    body: dict[str, Any] = {
        "input": [one.token_ids.tolist() for one in made],
        "embed_override_token_id": placeholder,
        "embed_overrides": [one.rows[list(one.contextual)].float().tolist() for one in made],
    }
    if truncate_dim is not None:
        segments, width = inputs.config.segments, description.decoder_shape.hidden_size
        body["dimensions"] = resolve_keep(truncate_dim, segments, width)
    return body


def _unused_id(sequences: Sequence[np.ndarray]) -> int:
    """The smallest token id that stands in none of the sequences, so that it marks a place."""
    used = np.unique(np.concatenate(sequences)) if sequences else np.empty(0, dtype=np.int32)
    free = np.flatnonzero(used != np.arange(len(used)))
    return int(free[0]) if len(free) else len(used)


def _check_template(description: CheckpointDescription) -> None:
    """Refuse what SGLang can not pool: all but one contextual row and the last row of a sequence.

    Raises:
        UnsupportedError: it is another template or pooling.
    """
    template = description.config.parsed_template
    entries = template.entries
    contexts = [i for i, entry in enumerate(entries) if entry.kind == CONTEXT]
    last = len(entries) - 1
    if len(contexts) != 1 or template.pooled != (contexts[0], last) or entries[last].format:
        raise UnsupportedError(
            f"{description.directory}: pooling is {list(description.config.pooling)}, SGLang can "
            "give one <context> and the sequence's last row, in this order"
        )
