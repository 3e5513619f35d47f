"""How vectors are read off vLLM's hidden states; knows nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)


def pool_prompts(
    hidden_states: torch.Tensor,
    lengths: Sequence[int],
    choices: Sequence[Mapping[str, Any] | None],
    normalize: Sequence[bool],
) -> list[torch.Tensor]:
    """Join the pooled rows of each prompt to one vector.

    Args:
        hidden_states: ``[tokens, d]`` of all prompts, after the final norm.
        lengths: rows of each prompt.
        choices: for each prompt ``pooled``, a list of ``[start, end]`` whose means are joined, and
            ``keep``, how many dimensions of each stay. None, as in vLLM's trial runs, is the first
            row and the last.
        normalize: for each prompt whether the joined vector is normalised.

    Returns:
        For each prompt a float32 vector.
    """
    embeddings = []
    prompts = zip(hidden_states.split(list(lengths)), choices, normalize, strict=True)
    for states, choice, normalized in prompts:
        rows = len(states)
        pooled = [[0, 1], [rows - 1, rows]] if choice is None else choice["pooled"]
        keep = None if choice is None else choice["keep"]
        parts = [states[start:end, :keep].float().mean(dim=0) for start, end in pooled]
        embedding = torch.cat(parts)
        embeddings.append(F.normalize(embedding, dim=0) if normalized else embedding)
    return embeddings
