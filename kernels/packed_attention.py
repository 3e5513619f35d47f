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

On the CPU a row's result depends on nothing but its own sequence, to the bit: not on the batch
around it, not on the number of threads, and, in a compiled kernel, not on whether all rows are
asked for or chosen ones. The Triton form for chosen rows keeps the same promise for the sequence
and the rows chosen of it. The Triton form for all rows keeps it within rounding: a sequence's keys
are added up in blocks, and where these begin depends on what stands before it in the batch; the
same batch always gives the same bits. In every form no value reaches a row of another sequence, NaN
and infinity included. Within a sequence such a one reaches every row that sees it, and may reach
rows that do not. A finite score that is not finite in float32 once it is multiplied by log2(e), so
one beyond 2.3e38, may make its row NaN: the kernels' exponential is that of base 2.

The op is ``torch.ops.c2v.packed_attention``, for inference only: it has no gradient. On CUDA it is
one of the two kernels of ``packed_attention_triton``. Its compiled CPU kernels stand in ``csrc/``,
one for each instruction set, of which the processor is given the fastest it has; they compute
float16 in float32. Everywhere else the PyTorch form below serves under the same name, one sequence
after the other.
"""

from __future__ import annotations

from enum import IntEnum
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._extension import load_extension
from c2v_engine.kernels._ops import as_the_compiled_op, can_validate, complete_op, refuse
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

MAX_HEAD_DIM = 256
MAX_HEADS = 65535
"""As many programs as CUDA starts along the second axis of a grid, where the heads stand."""
MAX_TOKENS = 2**31 - 1024
"""The kernels count keys in int32, up to a block beyond the last."""


class CpuVariant(IntEnum):
    """The compiled CPU kernels, by the instructions they need; a faster one has a higher code."""

    generic = 0
    avx2 = 1
    avx512 = 2
    avx512_bf16 = 3  # bfloat16 tensors only


_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CPU_DTYPES = (torch.float32, torch.bfloat16)
_FLOAT32_MAX = torch.finfo(torch.float32).max
_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_seqlen, bool causal, "
    "int window, float scale, Tensor? query_rows, Tensor? row_bounds=None) -> Tensor"
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
    validate: bool = True,
) -> Tensor:
    """Attends within each packed sequence, from all of its rows or from chosen ones.

    All tensors are on one device. Rows and heads may have any stride, so that query, key and value
    can be views of one fused buffer; a head whose dimensions are not neighbours is copied. Checking
    the *values* of ``cu_seqlens``, ``query_rows`` and ``row_bounds`` waits for the device; without
    it nothing does. What is wrong in the first two then is an error on the CPU, and on CUDA nothing
    is read out of range and a row that is in none of the sequences is NaN. ``row_bounds`` is
    believed on CUDA, as far as it stays within the rows of ``key``.

    Args:
        query: ``[tokens, heads, D]`` float32, float16 or bfloat16, with up to ``MAX_HEADS`` heads
            of D up to ``MAX_HEAD_DIM``; with ``query_rows`` ``[rows, heads, D]``.
        key: ``[tokens, kv_heads, D]`` of the same dtype, with up to ``MAX_TOKENS`` tokens;
            ``kv_heads`` divides ``heads``.
        value: likewise.
        cu_seqlens: ``[batch + 1]`` int32, from 0 to tokens: sequence ``b`` is rows
            ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
        max_seqlen: no sequence is longer.
        causal: whether a query sees only itself and what stands before it.
        scale: factor of the scores, finite in float32.
        window: in tokens, from 1 to 2^31 - 1; query i sees key j only where ``|i - j| < window``.
            None for no window.
        query_rows: ``[batch * n]`` int32, n rows of every sequence, sequence by sequence: row ``r``
            of ``query`` is the query of packed row ``query_rows[r]``. None for all rows.
        row_bounds: what ``row_bounds(cu_seqlens, tokens)`` gives, for layers that share it; only
            the Triton form for all rows reads it, and makes it where it is None.
        validate: whether to check the values of ``cu_seqlens``, ``query_rows`` and ``row_bounds``;
            not while torch traces.

    Returns:
        ``[tokens, heads, D]``, or ``[rows, heads, D]`` with ``query_rows``; contiguous, in the
        dtype of ``query``.

    Raises:
        InputError: a shape, dtype, device or option is not as described; or, where checked,
            ``cu_seqlens`` does not rise from 0 to tokens, has a sequence longer than
            ``max_seqlen``, a row of ``query_rows`` is not in its sequence, or ``row_bounds`` is not
            what ``cu_seqlens`` says.
        RuntimeError: on the CPU, the same of ``cu_seqlens`` and ``query_rows`` without the check.
    """
    _check(query, key, value, cu_seqlens, query_rows, row_bounds)
    _check_scalars(max_seqlen, window, scale)
    if validate and can_validate(cu_seqlens):
        _check_values(cu_seqlens, key.shape[0], max_seqlen, query_rows)
        _check_bounds(cu_seqlens, key.shape[0], row_bounds)
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
    validate: bool = True,
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``packed_attention`` for arguments, results and errors.
    """
    _check(query, key, value, cu_seqlens, query_rows, row_bounds)
    _check_scalars(max_seqlen, window, scale)
    if validate and can_validate(cu_seqlens):
        _check_values(cu_seqlens, key.shape[0], max_seqlen, query_rows)
        _check_bounds(cu_seqlens, key.shape[0], row_bounds)
    window = -1 if window is None else window
    return _pytorch_form(
        query, key, value, cu_seqlens, max_seqlen, causal, window, scale, query_rows
    )


def row_bounds(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Where the sequence of each packed row begins and ends; nothing waits for the device.

    Args:
        cu_seqlens: ``[batch + 1]`` int32, from 0 to tokens.
        tokens: packed rows.

    Returns:
        ``[2, tokens]`` int32: the first row, and the one past the last.

    Raises:
        InputError: ``cu_seqlens`` is not ``[batch + 1]`` int32, or tokens not a number of rows.
    """
    _check_offsets(cu_seqlens)
    if not _is_whole(tokens) or not 0 <= tokens < 2**31:
        raise InputError(f"tokens is {tokens!r}; expected an int from 0 to 2^31 - 1")
    if cu_seqlens.shape[0] < 2:
        return cu_seqlens.new_zeros((2, tokens))
    # A search and no repetition: offsets that do not rise would end the CUDA context there.
    ends = cu_seqlens[1:].contiguous()
    rows = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    sequences = torch.searchsorted(ends, rows, right=True).clamp_(max=len(ends) - 1)
    return torch.stack([cu_seqlens[:-1], ends]).index_select(1, sequences)


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
) -> Tensor:
    with as_the_compiled_op("packed_attention"):
        _check_values(cu_seqlens, key.shape[0], max_seqlen, query_rows)
    offsets = cu_seqlens.tolist()
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
    row_bounds: Tensor | None = None,
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
) -> Tensor:
    if query_rows is not None:
        return attend_chosen_rows(query, key, value, cu_seqlens, query_rows, causal, window, scale)
    if bounds is None:
        bounds = row_bounds(cu_seqlens, key.shape[0])
    return attend_all_rows(query, key, value, bounds, causal, window, scale)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor | None,
    row_bounds: Tensor | None,
) -> None:
    """Checks what can be checked without reading the tensors."""
    if query.ndim != 3 or query.dtype not in _DTYPES:
        refuse("query", query, "[rows, heads, D] float32, float16 or bfloat16")
    rows, heads, head_dim = query.shape
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        refuse("query", query, f"a head dimension D from 1 to {MAX_HEAD_DIM}")
    if heads > MAX_HEADS:
        refuse("query", query, f"at most {MAX_HEADS} heads")
    if key.ndim != 3 or key.shape[2] != head_dim or key.dtype != query.dtype:
        refuse("key", key, f"[tokens, kv_heads, {head_dim}] {_dtype(query)}, as query is")
    tokens, kv_heads, _ = key.shape
    if tokens > MAX_TOKENS:
        refuse("key", key, f"at most {MAX_TOKENS} tokens")
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        refuse("key", key, f"a number of kv_heads that divides the {heads} heads of query")
    if value.shape != key.shape or value.dtype != key.dtype:
        refuse("value", value, f"{list(key.shape)} {_dtype(key)}, as key is")
    _check_offsets(cu_seqlens)
    if query_rows is None:
        if rows != tokens:
            refuse("query", query, f"the {tokens} rows of key, or query_rows that tell which")
    else:
        _check_rows(rows, cu_seqlens.shape[0] - 1, query_rows)
    if row_bounds is not None and (
        row_bounds.shape != (2, tokens) or row_bounds.dtype != torch.int32
    ):
        refuse("row_bounds", row_bounds, f"[2, {tokens}] int32")
    given = {"key": key, "value": value, "cu_seqlens": cu_seqlens}
    optional = {"query_rows": query_rows, "row_bounds": row_bounds}
    for name, tensor in {**given, **optional}.items():
        if tensor is not None and tensor.device != query.device:
            refuse(name, tensor, f"a tensor on {query.device}, as query is")


def _check_offsets(cu_seqlens: Tensor) -> None:
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype != torch.int32:
        refuse("cu_seqlens", cu_seqlens, "[batch + 1] int32")


def _check_scalars(max_seqlen: int, window: int | None, scale: float) -> None:
    if not _is_whole(max_seqlen) or not 0 <= max_seqlen < 2**31:
        raise InputError(
            f"max_seqlen is {max_seqlen!r}; expected the length of the longest sequence"
        )
    if window is not None and (not _is_whole(window) or not 1 <= window < 2**31):
        raise InputError(
            f"window is {window!r}; give an int from 1 to 2^31 - 1, or None for no window"
        )
    if not _is_finite(scale):
        raise InputError(f"scale is {scale!r}; expected a number that is finite in float32")


def _is_whole(number: Any) -> bool:
    return isinstance(number, (Integral, torch.SymInt)) and not isinstance(number, bool)


def _is_finite(number: Any) -> bool:
    real = isinstance(number, (Real, torch.SymFloat)) and not isinstance(number, bool)
    return real and bool(abs(number) <= _FLOAT32_MAX)


def _check_rows(rows: int, batch: int, query_rows: Tensor) -> None:
    shaped = query_rows.shape == (rows,) and (rows % batch == 0 if batch else rows == 0)
    if not shaped or query_rows.dtype != torch.int32:
        expected = f"[{rows}] int32, as many rows as query has and as many of each of {batch}"
        refuse("query_rows", query_rows, f"{expected} sequences")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_values(
    cu_seqlens: Tensor, tokens: int, max_seqlen: int, query_rows: Tensor | None
) -> None:
    """Raises where an offset or a row is not as it must be; waits for the device."""
    offsets = cu_seqlens.cpu().long()
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != tokens:
        raise InputError(
            f"cu_seqlens runs from {first} to {last}; expected from 0 to the {tokens} rows of key"
        )
    lengths = offsets.diff()
    wrong = ((lengths < 0) | (lengths > max_seqlen)).nonzero()
    if len(wrong):
        sequence = int(wrong[0])
        raise InputError(
            f"cu_seqlens gives sequence {sequence} a length of {int(lengths[sequence])}; "
            f"expected 0 to max_seqlen, {max_seqlen}"
        )
    if query_rows is None or not len(lengths):
        return
    rows = query_rows.cpu().view(len(lengths), -1)
    outside = ((rows < offsets[:-1, None]) | (rows >= offsets[1:, None])).nonzero()
    if len(outside):
        sequence, place = outside[0].tolist()
        raise InputError(
            f"query_rows[{sequence * rows.shape[1] + place}] is {int(rows[sequence, place])}, but "
            f"sequence {sequence} has the rows {int(offsets[sequence])} to "
            f"{int(offsets[sequence + 1])}"
        )


def _check_bounds(cu_seqlens: Tensor, tokens: int, bounds: Tensor | None) -> None:
    """Raises where the bounds are not those of valid offsets; waits for the device."""
    if bounds is None:
        return
    expected = row_bounds(cu_seqlens, tokens)
    wrong = (bounds != expected).any(dim=0).nonzero()
    if len(wrong):
        row = int(wrong[0])
        (first, last), (low, high) = bounds[:, row].tolist(), expected[:, row].tolist()
        raise InputError(
            f"row_bounds gives row {row} the sequence from {first} to {last}, but cu_seqlens from "
            f"{low} to {high}; give row_bounds(cu_seqlens, {tokens})"
        )


complete_op("packed_attention", _SCHEMA, _pytorch_form, _fake, triton_form=_triton_form)
