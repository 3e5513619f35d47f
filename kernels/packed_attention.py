"""Attention over packed sequences: no padding, no gather, straight from the fused QKV buffer.

For every sequence, every query head ``h`` with its key head ``g = h // (heads / kv_heads)``, and
every query ``i`` of the sequence, over the keys ``j`` of the same sequence that it sees:

1. ``s_j = scale * q_i . k_j``; ``j`` is seen where ``j <= i`` if causal, and where
   ``|i - j| < window`` if there is a window
2. ``p_j = exp(s_j - max_j s_j)``
3. ``o_i = sum_j p_j v_j / sum_j p_j``

Scores, softmax and sums are float32; the compiled bfloat16 kernel rounds ``p`` to bfloat16 before
it meets ``v``, as FlashAttention does (Dao, 2023, arXiv:2307.08691). Between blocks of 512 keys it
keeps an online softmax.

A row's result depends on nothing but its own sequence, to the bit: not on the batch around it, not
on the number of threads, and, in a compiled kernel, not on whether all rows are asked for or chosen
ones. The one exception is a sequence that holds NaN or infinity: it reaches every row that sees it,
and may reach rows of that sequence that do not.

The op is ``torch.ops.c2v.packed_attention``, for inference only: it has no gradient. Its compiled
CPU kernels stand in ``csrc/``, one for each instruction set, of which the processor is given the
fastest it has; everywhere else the PyTorch form below serves under the same name, one sequence
after the other.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import pairwise

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._extension import load_extension
from c2v_engine.kernels._ops import complete_op, refuse

__all__ = [
    "MAX_HEAD_DIM",
    "CpuVariant",
    "cpu_variant",
    "cpu_variants",
    "packed_attention",
    "packed_attention_reference",
]

MAX_HEAD_DIM = 256


class CpuVariant(IntEnum):
    """The compiled CPU kernels, by the instructions they need; a faster one has a higher code."""

    generic = 0
    avx2 = 1
    avx512 = 2
    avx512_bf16 = 3  # bfloat16 tensors only


_DTYPES = (torch.float32, torch.bfloat16)
_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_seqlen, bool causal, "
    "int window, float scale, Tensor? query_rows) -> Tensor"
)


def cpu_variants() -> tuple[CpuVariant, ...]:
    """The compiled kernels that this processor runs; none where the extension is not loaded."""
    if not load_extension().available:
        return ()
    bits: int = torch.ops.c2v._packed_attention_variants()
    return tuple(variant for variant in CpuVariant if bits >> variant & 1)


def cpu_variant(dtype: torch.dtype) -> CpuVariant | None:
    """The compiled kernel that serves a dtype on this CPU, or None where the PyTorch form does."""
    if dtype not in _DTYPES:
        return None
    fits = (
        variant
        for variant in cpu_variants()
        if dtype == torch.bfloat16 or variant is not CpuVariant.avx512_bf16
    )
    return max(fits, default=None)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int,
    causal: bool,
    scale: float,
    window: int | None = None,
    query_rows: Tensor | None = None,
) -> Tensor:
    """Attends within each packed sequence, from all of its rows or from chosen ones.

    All tensors are on one device. Rows and heads may have any stride, so that query, key and value
    can be views of one fused buffer; a head whose dimensions are not neighbours is copied.

    Args:
        query: ``[tokens, heads, D]`` float32 or bfloat16, D up to 256; with ``query_rows``
            ``[rows, heads, D]``.
        key: ``[tokens, kv_heads, D]`` of the same dtype; ``kv_heads`` divides ``heads``.
        value: likewise.
        cu_seqlens: ``[batch + 1]`` int32, from 0 to tokens: sequence ``b`` is rows
            ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
        max_seqlen: no sequence is longer.
        causal: whether a query sees only itself and what stands before it.
        scale: factor of the scores.
        window: in tokens; query i sees key j only where ``|i - j| < window``. None for no window.
        query_rows: ``[batch * n]`` int32, n rows of every sequence, sequence by sequence: row ``r``
            of ``query`` is the query of packed row ``query_rows[r]``. None for all rows.

    Returns:
        ``[tokens, heads, D]``, or ``[rows, heads, D]`` with ``query_rows``; contiguous, in the
        dtype of ``query``.

    Raises:
        InputError: a shape, dtype, device or option is not as described.
        RuntimeError: on the CPU, a value of ``cu_seqlens`` or ``query_rows`` is out of range.
    """
    _check(query, key, value, cu_seqlens, max_seqlen, window, query_rows)
    output: Tensor = torch.ops.c2v.packed_attention(
        query,
        key,
        value,
        cu_seqlens,
        max_seqlen,
        causal,
        -1 if window is None else window,
        scale,
        query_rows,
    )
    return output


def packed_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int,
    causal: bool,
    scale: float,
    window: int | None = None,
    query_rows: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``packed_attention`` for arguments, results and errors.
    """
    _check(query, key, value, cu_seqlens, max_seqlen, window, query_rows)
    window = -1 if window is None else window
    return _pytorch_form(
        query, key, value, cu_seqlens, max_seqlen, causal, window, scale, query_rows
    )


def _pytorch_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    window: int,
    scale: float,
    query_rows: Tensor | None,
) -> Tensor:
    offsets = cu_seqlens.tolist()
    _check_values(offsets, key.shape[0], max_seqlen, query_rows)
    batch, group = len(offsets) - 1, query.shape[1] // key.shape[1]
    chosen = query_rows.shape[0] // max(batch, 1) if query_rows is not None else 0
    output = query.new_empty(query.shape)
    for b in range(batch):
        first, last = offsets[b], offsets[b + 1]
        keys = torch.arange(first, last, device=query.device)
        if query_rows is None:
            rows, positions = slice(first, last), keys
        else:
            rows = slice(b * chosen, (b + 1) * chosen)
            positions = query_rows[rows].to(keys.dtype)
        distance = positions[:, None] - keys
        visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window >= 0:
            visible = visible & (distance.abs() < window)
        q = query[rows].float().transpose(0, 1)
        k, v = (x[first:last].float().repeat_interleave(group, dim=1) for x in (key, value))
        scores = (q @ k.permute(1, 2, 0) * scale).masked_fill(~visible, float("-inf"))
        output[rows] = (scores.softmax(dim=-1) @ v.transpose(0, 1)).transpose(0, 1).to(query.dtype)
    return output


def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    window: int,
    scale: float,
    query_rows: Tensor | None,
) -> Tensor:
    return query.new_empty(query.shape)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int | None,
    query_rows: Tensor | None,
) -> None:
    """Checks what can be checked without reading the tensors."""
    if query.ndim != 3 or query.dtype not in _DTYPES:
        refuse("query", query, "[rows, heads, D] float32 or bfloat16")
    rows, heads, head_dim = query.shape
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        refuse("query", query, f"a head dimension D from 1 to {MAX_HEAD_DIM}")
    if key.ndim != 3 or key.shape[2] != head_dim or key.dtype != query.dtype:
        refuse("key", key, f"[tokens, kv_heads, {head_dim}] {_dtype(query)}, as query is")
    tokens, kv_heads, _ = key.shape
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        refuse("key", key, f"a number of kv_heads that divides the {heads} heads of query")
    if value.shape != key.shape or value.dtype != key.dtype:
        refuse("value", value, f"{list(key.shape)} {_dtype(key)}, as key is")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype != torch.int32:
        refuse("cu_seqlens", cu_seqlens, "[batch + 1] int32")
    if query_rows is None:
        if rows != tokens:
            refuse("query", query, f"the {tokens} rows of key, or query_rows that tell which")
    else:
        _check_rows(rows, cu_seqlens.shape[0] - 1, query_rows)
    if not 0 <= max_seqlen < 2**31:
        raise InputError(f"max_seqlen is {max_seqlen}; expected the length of the longest sequence")
    if window is not None and window < 1:
        raise InputError(f"window is {window}; give 1 or more tokens, or None for no window")
    given = {"key": key, "value": value, "cu_seqlens": cu_seqlens, "query_rows": query_rows}
    for name, tensor in given.items():
        if tensor is not None and tensor.device != query.device:
            refuse(name, tensor, f"a tensor on {query.device}, as query is")


def _check_rows(rows: int, batch: int, query_rows: Tensor) -> None:
    shaped = query_rows.shape == (rows,) and (rows % batch == 0 if batch else rows == 0)
    if not shaped or query_rows.dtype != torch.int32:
        expected = f"[{rows}] int32, as many rows as query has and as many of each of {batch}"
        refuse("query_rows", query_rows, f"{expected} sequences")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_values(
    offsets: list[int], tokens: int, max_seqlen: int, query_rows: Tensor | None
) -> None:
    """Our own mistakes; only on the CPU are the rows read for them."""
    lengths = [last - first for first, last in pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != tokens:
        raise RuntimeError(
            f"packed_attention: cu_seqlens must run from 0 to the number of tokens, {tokens}"
        )
    if any(not 0 <= length <= max_seqlen for length in lengths):
        raise RuntimeError(
            f"packed_attention: a sequence's length is not in 0 to max_seqlen, {max_seqlen}"
        )
    if query_rows is None or query_rows.device.type != "cpu" or not lengths:
        return
    starts = torch.tensor(offsets)[:, None]
    rows = query_rows.view(len(lengths), query_rows.shape[0] // len(lengths))
    if bool(((rows < starts[:-1]) | (rows >= starts[1:])).any()):
        raise RuntimeError("packed_attention: a row of query_rows is not in its sequence")


complete_op("packed_attention", _SCHEMA, _pytorch_form, _fake)
