"""The decoder of a checkpoint as stock transformers runs it, on rows that it is given."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812


def embeddings_by_the_stock_decoder(reference, inputs, normalize=True) -> np.ndarray:
    """Feed each text's rows as ``inputs_embeds`` and read its embedding off the hidden states.

    Args:
        reference: whose decoder runs, a ``Causal2VecReference``.
        inputs: ``DecoderInput``s.
        normalize: the joined vector.

    Returns:
        ``[texts, dimensions]``.
    """
    embeddings = []
    for one in inputs:
        with torch.inference_mode():
            states = reference.decoder(inputs_embeds=one.rows[None]).last_hidden_state[0]
        parts = [states[start:end].mean(dim=0) for start, end in one.pooled]
        embeddings.append(torch.cat(parts))
    stacked = torch.stack(embeddings)
    return (F.normalize(stacked, dim=1) if normalize else stacked).numpy()
