"""The ops that gather rows or pool them; ids are distinct, so that no row is read twice.

In what follows ``e`` is the bytes of an element.

On CUDA the references of three ops guard every id, which costs several passes that no one who
trusts the ids would pay for. What PyTorch is timed with is therefore written out here: the fewest
and fastest calls that give the same, with all that can be known of a batch known before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.kernels.dual_token_pool import dual_token_pool, dual_token_pool_reference
from c2v_engine.kernels.embed_layer_norm import embed_layer_norm, embed_layer_norm_reference
from c2v_engine.kernels.prefix_concat import prefix_concat, prefix_concat_reference
from c2v_engine.kernels.segment_pool import segment_pool, segment_pool_reference
from kernel_benchmark.case import Arguments, Draw, KernelOp, Sizes

__all__ = ["GATHER_OPS"]

EPS = 1e-6
SMALL = 0.1
INT32 = 4
FLOAT32 = 4


def make_embed(sizes: Sizes, draw: Draw) -> Arguments:
    tokens, length, hidden = sizes["tokens"], sizes["length"], sizes["hidden"]
    return {
        "token_ids": draw.distinct(tokens, sizes["vocab"]),
        "position_ids": draw.cycle(tokens // length, length),
        "word_embeddings": draw.normal(sizes["vocab"], hidden),
        "position_embeddings": draw.normal(length, hidden),
        "token_type": draw.normal(hidden),
        "weight": draw.normal(hidden, scale=SMALL, mean=1.0),
        "bias": draw.normal(hidden, scale=SMALL),
        "eps": EPS,
    }


def embed_bytes(sizes: Sizes, e: int) -> int:
    """A word's row read and a row written for each token, both ids; the other rows read once."""
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return tokens * (2 * hidden * e + 2 * INT32) + (sizes["length"] + 3) * hidden * e


def plain_embed(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Two gathers, two sums and a LayerNorm."""
    summed = F.embedding(token_ids, word_embeddings) + token_type
    summed += F.embedding(position_ids, position_embeddings)
    return F.layer_norm(summed, weight.shape, weight, bias, eps)


def make_concat(sizes: Sizes, draw: Draw) -> Arguments:
    tokens, length, hidden = sizes["tokens"], sizes["length"], sizes["hidden"]
    texts = tokens // length
    words = draw.distinct(tokens, sizes["vocab"])
    token_ids = words.clone()
    numbers = torch.arange(texts, device=draw.device, dtype=torch.int32)
    token_ids[::length] = -1 - numbers  # the contextual token leads each text
    return {
        "token_ids": token_ids,
        "embed_tokens": draw.normal(sizes["vocab"], hidden),
        "contextual": draw.normal(texts, hidden),
        "words": words,
        "places": numbers.long() * length,
    }


def concat_bytes(sizes: Sizes, e: int) -> int:
    """A row read and written for each token, and its id read."""
    return sizes["tokens"] * (2 * sizes["hidden"] * e + INT32)


def plain_concat(
    embed_tokens: Tensor, contextual: Tensor, words: Tensor, places: Tensor, **unused: Any
) -> Tensor:
    """A gather, in which any word stands for a contextual token, and a copy over it."""
    return F.embedding(words, embed_tokens).index_copy_(0, places, contextual)


def make_segment_pool(sizes: Sizes, draw: Draw) -> Arguments:
    tokens, length = sizes["tokens"], sizes["length"]
    texts = tokens // length
    counts = torch.full((texts,), length, device=draw.device, dtype=torch.int32)
    return {
        "states": draw.normal(tokens, sizes["hidden"]),
        "offsets": draw.steps(texts, length),
        "counts": counts,
        "validate": False,
        "all_rows": torch.arange(tokens, device=draw.device, dtype=torch.int32),
    }


def segment_pool_bytes(sizes: Sizes, e: int) -> int:
    """States read, a mean written for each text; offsets and counts read."""
    texts = sizes["tokens"] // sizes["length"]
    return (sizes["tokens"] + texts) * sizes["hidden"] * e + (2 * texts + 1) * INT32


def plain_segment_pool(states: Tensor, offsets: Tensor, all_rows: Tensor, **unused: Any) -> Tensor:
    """One pass over the states as they are, summed in float32.

    ``index_add`` would write a copy of them in float32 first, and ``segment_reduce`` sums in the
    states' dtype.
    """
    return F.embedding_bag(all_rows, states, offsets, mode="mean", include_last_offset=True)


def make_dual_pool(sizes: Sizes, draw: Draw) -> Arguments:
    texts, hidden = sizes["texts"], sizes["hidden"]
    tokens = texts * sizes["length"]
    return {
        "hidden_states": draw.normal(tokens, hidden),
        "rows": draw.distinct(2 * texts, tokens),
        "offsets": draw.steps(2 * texts, 1),
        "norm_weight": draw.normal(hidden, scale=SMALL, mean=1.0),
        "eps": EPS,
        "segments": 2,
        "keep": hidden,
        "validate": False,
    }


def dual_pool_bytes(sizes: Sizes, e: int) -> int:
    """Two rows read and written as float32 for each text, its norm; indices and the weight read."""
    texts, hidden = sizes["texts"], sizes["hidden"]
    moved = 2 * texts * hidden * (e + FLOAT32) + texts * FLOAT32
    return moved + (4 * texts + 1) * INT32 + hidden * e


GATHER_OPS = (
    KernelOp(
        "embed_layer_norm",
        embed_layer_norm,
        embed_layer_norm_reference,
        make_embed,
        embed_bytes,
        shared=("word_embeddings", "position_embeddings"),
        baseline=plain_embed,
    ),
    KernelOp(
        "prefix_concat",
        prefix_concat,
        prefix_concat_reference,
        make_concat,
        concat_bytes,
        shared=("embed_tokens",),
        baseline=plain_concat,
        prepared=("words", "places"),
    ),
    KernelOp(
        "segment_pool",
        segment_pool,
        segment_pool_reference,
        make_segment_pool,
        segment_pool_bytes,
        baseline=plain_segment_pool,
        prepared=("all_rows",),
    ),
    KernelOp(
        "dual_token_pool",
        dual_token_pool,
        dual_token_pool_reference,
        make_dual_pool,
        dual_pool_bytes,
    ),
)
