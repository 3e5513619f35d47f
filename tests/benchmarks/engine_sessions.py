"""What the tests of the engine benchmark share: tiny sessions, and packed attention for a CPU."""

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812


def attend_one_by_one(query, key, value, cu_seqlens, longest, scale, causal):
    """The attention of packed sequences, each by torch's own: what a kernel has to compute."""
    bounds = cu_seqlens.tolist()
    assert max(b - a for a, b in pairwise(bounds)) == longest
    parts = []
    for begin, end in pairwise(bounds):
        heads = (part[begin:end].transpose(0, 1)[None] for part in (query, key, value))
        attended = F.scaled_dot_product_attention(
            *heads, scale=scale, is_causal=causal, enable_gqa=True
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


def open_session(directory, model="tiny-mistral", template=None):
    from c2v_engine.bench.models.shapes import MODELS
    from c2v_engine.bench.models.synthetic import TEMPLATE, SyntheticCheckpoint
    from c2v_engine.bench.session import Session

    return Session(
        SyntheticCheckpoint.write(
            directory, MODELS[model], torch.device("cpu"), template or TEMPLATE
        )
    )
