"""Attention over packed sequences of one length: our op, and every backend of the engine.

In what follows ``e`` is the bytes of an element. Query, key and value are views of one fused
buffer, as in the model.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2v_engine.kernels.packed_attention import packed_attention, row_bounds
from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.attention.select import BACKENDS
from c2v_engine.model.packed_batch import PackedSequences
from kernel_benchmark.case import Arguments, Case, Draw, KernelOp, Provider, Sizes, Unusable

__all__ = ["AFTER_PROMPT_ATTENTION", "ATTENTION", "POOLED_ROWS_ATTENTION"]

INT32 = 4
POOLED_ROWS = 2  # the contextual token's and EOS's
PROMPT = 64  # tokens that stand before every text


def make_attention(sizes: Sizes, draw: Draw) -> Arguments:
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    tokens, length = sizes["tokens"], sizes["length"]
    fused = draw.normal(tokens, (heads + 2 * kv_heads) * head_dim)
    parts = fused.split([n * head_dim for n in (heads, kv_heads, kv_heads)], dim=1)
    query, key, value = (part.unflatten(1, (-1, head_dim)) for part in parts)
    cu_seqlens = draw.steps(tokens // length, length)
    return {
        "query": query,
        "key": key,
        "value": value,
        "cu_seqlens": cu_seqlens,
        "max_seqlen": length,
        "causal": bool(sizes["causal"]),
        "scale": head_dim**-0.5,
        "row_bounds": row_bounds(cu_seqlens, tokens),
    }


def attention_bytes(sizes: Sizes, e: int) -> int:
    """Q, K and V read, the result written; the sequences' offsets read."""
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    tokens = sizes["tokens"]
    return tokens * 2 * (heads + kv_heads) * head_dim * e + (tokens // sizes["length"] + 1) * INT32


def attention_operations(sizes: Sizes) -> int:
    """Two products of 2 x D operations for every query head and every key that it sees."""
    length, causal = sizes["length"], sizes["causal"]
    seen = sizes["tokens"] * (length + 1) // 2 if causal else sizes["tokens"] * length
    return 4 * sizes["heads"] * sizes["head_dim"] * seen


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int,
    causal: bool,
    scale: float,
    row_bounds: Tensor,
    query_rows: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
) -> Tensor:
    """Attention written out for sequences of one length: two products with a softmax between."""
    group = query.shape[1] // key.shape[1]
    k, v = (
        x.unflatten(0, (-1, max_seqlen)).transpose(1, 2).repeat_interleave(group, dim=1)
        for x in (key, value)
    )
    texts = k.shape[0]
    q = query.unflatten(0, (texts, -1)).transpose(1, 2)
    scores = (q @ k.transpose(2, 3)).float() * scale
    if causal:
        keys = torch.arange(max_seqlen, device=q.device)
        if query_rows is None:
            seen = keys <= keys[max_seqlen - q.shape[2] :, None]
        else:
            seen = keys <= query_rows[: q.shape[2], None]
        scores = scores.masked_fill(~seen, float("-inf"))
    attended: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return attended.transpose(1, 2).flatten(0, 1)


def attention_backends(case: Case, arguments: Arguments) -> list[Provider | Unusable]:
    """Every backend that the engine can be asked for."""
    query: Tensor = arguments["query"]
    found: list[Provider | Unusable] = []
    for name, kind in BACKENDS.items():
        reason = kind.why_not(query.device, query.dtype, query.shape[2])
        if reason is not None:
            found.append(Unusable(name, reason, backend=name))
            continue
        try:
            call = backend_call(kind(), arguments)
        except Exception as error:
            reason = f"it can not plan: {' '.join(str(error).split())}"
            found.append(Unusable(name, reason, backend=name))
            continue
        found.append(Provider(name, call, backend=name))
    return found


def backend_call(backend: AttentionBackend, arguments: Arguments) -> Any:
    """Attends as a layer does, with the plan that a batch makes once."""
    cu_seqlens: Tensor = arguments["cu_seqlens"]
    length: int = arguments["max_seqlen"]
    texts = len(cu_seqlens) - 1
    positions = torch.arange(length, device=cu_seqlens.device, dtype=torch.int32).repeat(texts)
    sequences = PackedSequences(positions, positions, cu_seqlens, np.full(texts, length))
    plan = backend.plan(sequences, AttentionMask(arguments["causal"]))
    scale: float = arguments["scale"]

    def call(given: Arguments) -> Tensor:
        return backend.attend(given["query"], given["key"], given["value"], plan, scale)

    return call


def make_pooled_rows(sizes: Sizes, draw: Draw) -> Arguments:
    arguments = make_attention(sizes, draw)
    starts = arguments["cu_seqlens"][:-1, None]
    ends = torch.tensor([0, sizes["length"] - 1], device=draw.device, dtype=torch.int32)
    rows = len(starts) * POOLED_ROWS
    arguments["query"] = draw.normal(rows, sizes["heads"], sizes["head_dim"])
    arguments["query_rows"] = (starts + ends).flatten()
    return arguments


def pooled_rows_bytes(sizes: Sizes, e: int) -> int:
    """K and V read; Q read and the result written for the rows; offsets and rows read."""
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    texts = sizes["tokens"] // sizes["length"]
    states = 2 * (sizes["tokens"] * kv_heads + texts * POOLED_ROWS * heads) * head_dim
    return states * e + (texts * (POOLED_ROWS + 1) + 1) * INT32


def make_after_prompt(sizes: Sizes, draw: Draw) -> Arguments:
    """Keys and values of a prompt and the text, joined; queries of the text's own rows."""
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    tokens, length = sizes["tokens"], sizes["length"]
    texts, joined = tokens // length, PROMPT + length
    key_value = draw.normal(texts * joined, 2 * kv_heads * head_dim)
    key, value = (part.unflatten(1, (-1, head_dim)) for part in key_value.chunk(2, dim=1))
    cu_seqlens, cu_seqlens_q = draw.steps(texts, joined), draw.steps(texts, length)
    fused = draw.normal(tokens, (heads + 2 * kv_heads) * head_dim)
    return {
        "query": fused[:, : heads * head_dim].unflatten(1, (-1, head_dim)),
        "key": key,
        "value": value,
        "cu_seqlens": cu_seqlens,
        "max_seqlen": joined,
        "causal": bool(sizes["causal"]),
        "scale": head_dim**-0.5,
        "row_bounds": row_bounds(cu_seqlens, tokens, cu_seqlens_q),
        "cu_seqlens_q": cu_seqlens_q,
    }


def after_prompt_bytes(sizes: Sizes, e: int) -> int:
    """Q read and the result written, K and V of the prompts read too; both offsets read."""
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    tokens, texts = sizes["tokens"], sizes["tokens"] // sizes["length"]
    states = 2 * (tokens * heads + (tokens + texts * PROMPT) * kv_heads) * head_dim
    return states * e + 2 * (texts + 1) * INT32


def after_prompt_operations(sizes: Sizes) -> int:
    """As for all rows, and every query sees the prompt."""
    seen = sizes["tokens"] * PROMPT
    return attention_operations(sizes) + 4 * sizes["heads"] * sizes["head_dim"] * seen


def pooled_rows_operations(sizes: Sizes) -> int:
    """As for all rows: a first row sees one key, a last row all."""
    texts = sizes["tokens"] // sizes["length"]
    seen = texts * ((1 + sizes["length"]) if sizes["causal"] else 2 * sizes["length"])
    return 4 * sizes["heads"] * sizes["head_dim"] * seen


_op = functools.partial(
    KernelOp,
    "packed_attention",
    functools.partial(packed_attention, validate=False),
    dense_attention,
)
ATTENTION = _op(
    make_attention,
    attention_bytes,
    operations=attention_operations,
    rivals=attention_backends,
)
POOLED_ROWS_ATTENTION = _op(
    make_pooled_rows,
    pooled_rows_bytes,
    operations=pooled_rows_operations,
    variant="pooled_rows",
)
AFTER_PROMPT_ATTENTION = _op(
    make_after_prompt,
    after_prompt_bytes,
    operations=after_prompt_operations,
    variant="after_prompt",
)
