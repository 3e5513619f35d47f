"""Attention over packed sequences: no padding, no gather, straight from the fused QKV buffer.

For every sequence, every query head ``h`` with its key head ``g = h // (heads / kv_heads)``, and
every query ``i`` of the sequence, over the keys ``j`` of the same sequence that it sees:

1. ``s_j = scale * q_i . k_j``; ``j`` is seen where ``j <= i`` if causal, and where
   ``|i - j| < window`` if there is a window
2. ``p_j = exp(s_j - max_j s_j)``
3. ``o_i = sum_j p_j v_j / sum_j p_j``

There may be queries of only the last rows of a sequence, as where texts share a prompt whose keys
and values stand before each text's own. ``i`` is then still the place of the query's own key in its
sequence: the mask is aligned at the bottom right, as FlashAttention calls it.

Scores, softmax and sums are float32; the compiled bfloat16 kernel rounds ``p`` to bfloat16 before
it meets ``v``, as FlashAttention does (Dao, 2023, arXiv:2307.08691). Between blocks of 512 keys it
keeps an online softmax.

On the CPU a row's result depends on nothing but its own sequence, to the bit: not on the batch
around it, not on the number of threads, and, in a compiled kernel, not on whether all rows are
asked for, the last ones or chosen ones. The Triton form for chosen rows keeps the same promise for
the sequence and the rows chosen of it. The Triton form for all or the last rows keeps it within
rounding: a sequence's keys are added up in blocks, and where these begin depends on what stands
before it in the batch; the same batch always gives the same bits. In every form no value reaches a
row of another sequence, NaN and infinity included. Within a sequence such a one reaches every row
that sees it, and may reach rows that do not. A finite score that is not finite in float32 once it
is multiplied by log2(e), so one beyond 2.3e38, may make its row NaN: the kernels' exponential is
that of base 2.

The op is ``torch.ops.c2v.packed_attention``, for inference only: it has no gradient. On CUDA it is
one of the two kernels of ``packed_attention_triton``. Its compiled CPU kernels stand in ``csrc/``,
one for each instruction set, of which the processor is given the fastest it has; they compute
float16 in float32. Everywhere else the PyTorch form below serves under the same name, one sequence
after the other.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from c2v_engine.kernels._attention_bounds import check_bounds, row_bounds
from c2v_engine.kernels._attention_checks import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_TOKENS,
    check_arguments,
    check_scalars,
    check_values,
)
from c2v_engine.kernels._extension import load_extension
from c2v_engine.kernels._ops import as_the_compiled_op, can_validate, complete_op
from c2v_engine.kernels.packed_attention_triton import attend_all_rows, attend_chosen_rows

__all__ = [
    "MAX_HEADS",
    "MAX_HEAD_DIM",
    "MAX_TOKENS",
    "CpuVariant",
    "cpu_variant",
    "cpu_variants",
    "packed_attention",
    "packed_attention_reference",
    "row_bounds",
]


class CpuVariant(IntEnum):
    """The compiled CPU kernels, by the instructions they need; a faster one has a higher code."""

    generic = 0
    avx2 = 1
    avx512 = 2
    avx512_bf16 = 3  # bfloat16 tensors only


_CPU_DTYPES = (torch.float32, torch.bfloat16)
_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_seqlen, bool causal, "
    "int window, float scale, Tensor? query_rows, Tensor? row_bounds=None, "
    "Tensor? cu_seqlens_q=None) -> Tensor"
)


def cpu_variants() -> tuple[CpuVariant, ...]:
    """The compiled kernels that this processor runs; none where the extension is not loaded."""
    if not load_extension().available:
        return ()
    bits: int = torch.ops.c2v._packed_attention_variants()
    return tuple(variant for variant in CpuVariant if bits >> variant & 1)


def cpu_variant(dtype: torch.dtype) -> CpuVariant | None:
    """The compiled kernel that is made for a dtype on this CPU, or None where there is none."""
    if dtype not in _CPU_DTYPES:
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
    row_bounds: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Attends within each packed sequence, from all of its rows, its last or chosen ones.

    All tensors are on one device. Rows and heads may have any stride, so that query, key and value
    can be views of one fused buffer; a head whose dimensions are not neighbours is copied. Checking
    the *values* of ``cu_seqlens``, ``cu_seqlens_q``, ``query_rows`` and ``row_bounds`` waits for
    the device; without it nothing does. What is wrong in the first three then is an error on the
    CPU, and on CUDA nothing is read out of range and a query that is in none of the sequences, or
    has no key in its own, is NaN. ``row_bounds`` is believed on CUDA, as far as it stays within the
    rows of ``key``.

    Args:
        query: ``[tokens, heads, D]`` float32, float16 or bfloat16, with up to ``MAX_HEADS`` heads
            of D up to ``MAX_HEAD_DIM``; ``[rows, heads, D]`` with ``query_rows`` or
            ``cu_seqlens_q``.
        key: ``[tokens, kv_heads, D]`` of the same dtype, with up to ``MAX_TOKENS`` tokens;
            ``kv_heads`` divides ``heads``.
        value: likewise.
        cu_seqlens: ``[batch + 1]`` int32, from 0 to tokens: sequence ``b`` is rows
            ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``. With ``query_rows``, on CUDA and without the
            check, it may end before the last token: what stands behind is not read.
        max_seqlen: no sequence is longer.
        causal: whether a query sees only itself and what stands before it.
        scale: factor of the scores, finite in float32.
        window: in tokens, from 1 to 2^31 - 1; query i sees key j only where ``|i - j| < window``.
            None for no window.
        query_rows: ``[batch * n]`` int32, n rows of every sequence, sequence by sequence: row ``r``
            of ``query`` is the query of packed row ``query_rows[r]`` of the keys. None for all
            rows, or the last ones. Not together with ``cu_seqlens_q``.
        row_bounds: what ``row_bounds(cu_seqlens, tokens)`` gives, and with ``cu_seqlens_q``
            ``row_bounds(cu_seqlens, rows, cu_seqlens_q)``, for layers that share it; only the
            Triton form for all or the last rows reads it, and makes it where it is None.
        cu_seqlens_q: ``[batch + 1]`` int32, from 0 to rows: rows ``cu_seqlens_q[b]`` to
            ``cu_seqlens_q[b + 1]`` of ``query`` are the queries of the last as many keys of
            sequence ``b``. None where every key has its query.
        validate: whether to check the values of ``cu_seqlens``, ``cu_seqlens_q``, ``query_rows``
            and ``row_bounds``; not while torch traces.

    Returns:
        As many rows as ``query``, ``[tokens or rows, heads, D]``; contiguous, in its dtype.

    Raises:
        InputError: a shape, dtype, device or option is not as described; or, where checked,
            ``cu_seqlens`` does not rise from 0 to tokens, has a sequence longer than
            ``max_seqlen``, ``cu_seqlens_q`` does not rise from 0 to rows or gives a sequence more
            queries than keys, a row of ``query_rows`` is not in its sequence, or ``row_bounds`` is
            not what the offsets say.
        RuntimeError: on the CPU, the same of ``cu_seqlens``, ``cu_seqlens_q`` and ``query_rows``
            without the check.
    """
    check_arguments(query, key, value, cu_seqlens, query_rows, row_bounds, cu_seqlens_q)
    check_scalars(max_seqlen, window, scale)
    if validate and can_validate(cu_seqlens):
        check_values(query, key, cu_seqlens, max_seqlen, query_rows, cu_seqlens_q)
        check_bounds(cu_seqlens, row_bounds, cu_seqlens_q)
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
        row_bounds,
        cu_seqlens_q,
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
    row_bounds: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``packed_attention`` for arguments, results and errors.
    """
    check_arguments(query, key, value, cu_seqlens, query_rows, row_bounds, cu_seqlens_q)
    check_scalars(max_seqlen, window, scale)
    if validate and can_validate(cu_seqlens):
        check_values(query, key, cu_seqlens, max_seqlen, query_rows, cu_seqlens_q)
        check_bounds(cu_seqlens, row_bounds, cu_seqlens_q)
    return _pytorch_form(
        query,
        key,
        value,
        cu_seqlens,
        max_seqlen,
        causal,
        -1 if window is None else window,
        scale,
        query_rows,
        row_bounds,
        cu_seqlens_q,
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
    row_bounds: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
) -> Tensor:
    with as_the_compiled_op("packed_attention"):
        check_values(query, key, cu_seqlens, max_seqlen, query_rows, cu_seqlens_q)
    offsets = cu_seqlens.tolist()
    query_offsets = offsets if cu_seqlens_q is None else cu_seqlens_q.tolist()
    batch, group = len(offsets) - 1, query.shape[1] // key.shape[1]
    chosen = query_rows.shape[0] // max(batch, 1) if query_rows is not None else 0
    output = query.new_empty(query.shape)
    for b in range(batch):
        first, last = offsets[b], offsets[b + 1]
        keys = torch.arange(first, last, device=query.device)
        if query_rows is None:
            begin, end = query_offsets[b : b + 2]
            positions = keys[last - first - (end - begin) :]
        else:
            begin, end = b * chosen, (b + 1) * chosen
            positions = query_rows[begin:end].to(keys.dtype)
        distance = positions[:, None] - keys
        visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window >= 0:
            visible = visible & (distance.abs() < window)
        q = query[begin:end].float().transpose(0, 1)
        k, v = (x[first:last].float().repeat_interleave(group, dim=1) for x in (key, value))
        scores = (q @ k.permute(1, 2, 0) * scale).masked_fill(~visible, float("-inf"))
        attended = (scores.softmax(dim=-1) @ v.transpose(0, 1)).transpose(0, 1)
        output[begin:end] = attended.to(query.dtype)
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
    row_bounds: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
) -> Tensor:
    return query.new_empty(query.shape)


def _triton_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    window: int,
    scale: float,
    query_rows: Tensor | None,
    bounds: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
) -> Tensor:
    if query_rows is not None:
        return attend_chosen_rows(query, key, value, cu_seqlens, query_rows, causal, window, scale)
    if bounds is None:
        bounds = row_bounds(cu_seqlens, query.shape[0], cu_seqlens_q)
    return attend_all_rows(query, key, value, bounds, causal, window, scale)


complete_op("packed_attention", _SCHEMA, _pytorch_form, _fake, triton_form=_triton_form)
