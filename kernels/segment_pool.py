"""Segment pooling: the packed token states of a batch into one row for each text.

The states of text ``t`` are ``x_i = states[i]`` for ``offsets[t] <= i < offsets[t + 1]``, or where
``rows`` is given ``x_i = states[rows[i]]``. In float32, with ``round`` for rounding to the states'
dtype:

1. ``sum = x_first + ... + x_last``, one after another in this order; 0 for an empty segment
2. where ``partial`` is given, ``sum = sum + partial[t]``
3. where ``counts`` is given, the result is ``round(sum / counts[t])``, else ``sum``

A text's sum is formed in an order that its own rows alone decide, so it has the same bits in every
batch. States beyond the last offset belong to no text.

The op is ``torch.ops.c2v.segment_pool``, for inference only: it has no gradient. On CUDA it is the
Triton kernel below, one launch; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import (
    as_the_compiled_op,
    can_validate,
    check_rows,
    complete_op,
    refuse,
)
from c2v_engine.kernels._triton import FP_FUSION, cdiv, jit, next_power_of_2, readable, tl

__all__ = ["segment_pool", "segment_pool_reference"]


def segment_pool(
    states: Tensor,
    offsets: Tensor,
    *,
    counts: Tensor | None = None,
    rows: Tensor | None = None,
    partial: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Sums, or averages, the states of each text in float32.

    All tensors are on one device. Checking the *values* of ``offsets`` and ``counts`` waits for the
    device; without it nothing does. What is wrong in ``offsets`` then, or in ``rows``, is an error
    on the CPU. On CUDA nothing is read out of range, and a text's row is NaN where its offsets fall
    or leave the range, it is the first and does not begin at 0, it is the last of ``rows`` and does
    not end at their number, or one of its rows is out of range. On both it is NaN where its count
    is below 1.

    Args:
        states: ``[tokens, k]`` float32, float16 or bfloat16; its rows may be strided.
        offsets: ``[texts + 1]`` int32, rising from 0 to the number of ``rows``; without ``rows`` to
            the number of states at most.
        counts: ``[texts]`` int32 from 1, what each sum is divided by; None for the sums.
        rows: ``[R]`` int32, rows of ``states``; None for all of them, as they stand.
        partial: ``[texts, k]`` float32, added to the sums.
        validate: whether to check the values of ``offsets`` and ``counts``; not while torch traces.

    Returns:
        ``[texts, k]`` in new memory: means of the states' dtype, or float32 sums.

    Raises:
        InputError: a shape, dtype or device is not as described; or, where checked, the offsets do
            not rise as described, or a count is below 1.
        RuntimeError: on the CPU, a row is out of range, or offsets that nobody checked are wrong.
    """
    _check(states, offsets, counts, rows, partial)
    if validate and can_validate(offsets):
        _check_offsets(states, offsets, rows)
        _check_counts(counts)
    pooled: Tensor = torch.ops.c2v.segment_pool(states, offsets, counts, rows, partial)
    return pooled


def segment_pool_reference(
    states: Tensor,
    offsets: Tensor,
    *,
    counts: Tensor | None = None,
    rows: Tensor | None = None,
    partial: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``segment_pool`` for arguments, result and errors.
    """
    _check(states, offsets, counts, rows, partial)
    if validate and can_validate(offsets):
        _check_offsets(states, offsets, rows)
        _check_counts(counts)
    return _pytorch_form(states, offsets, counts, rows, partial)


def _pytorch_form(
    states: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    rows: Tensor | None,
    partial: Tensor | None,
) -> Tensor:
    if states.device.type == "cuda":
        sums = _sums_without_waiting(states, offsets, rows)
    else:
        _check_values(states, offsets, rows)
        sums = _sums(states, offsets, rows, None)
    if partial is not None:
        sums += partial
    if counts is None:
        return sums
    divisors = counts.float().masked_fill_(counts < 1, torch.nan)
    return (sums / divisors[:, None]).to(states.dtype)


def _sums(states: Tensor, offsets: Tensor, rows: Tensor | None, weights: Tensor | None) -> Tensor:
    """The float32 sums, each in the order of its rows."""
    if rows is None:
        rows = torch.arange(len(states), dtype=torch.int32, device=states.device)
    if not len(rows):
        shape = (len(offsets) - 1, states.shape[1])
        return states.new_zeros(shape, dtype=torch.float32)
    # The last bag goes from the last offset to the end and is nobody's.
    bags = F.embedding_bag(rows, states.float(), offsets, mode="sum", per_sample_weights=weights)
    return bags[:-1]


def _sums_without_waiting(states: Tensor, offsets: Tensor, rows: Tensor | None) -> Tensor:
    """The same with NaN for what is out of range; no step needs a value on the host."""
    weights = None
    total = len(states) if rows is None else len(rows)
    if rows is not None:
        outside = (rows < 0) | (rows >= len(states))
        rows = rows.masked_fill(outside, 0)
        weights = torch.ones_like(rows, dtype=torch.float32).masked_fill_(outside, torch.nan)
        states = states if len(states) else states.new_zeros((1, states.shape[1]))
    begin, end = offsets[:-1], offsets[1:]
    wrong = (begin < 0) | (end < begin) | (end > total)
    wrong[:1] |= begin[:1] != 0
    if rows is not None:
        wrong[-1:] |= end[-1:] != total
    rising = offsets.clamp(0, total).cummax(0).values
    rising[0] = 0
    return _sums(states, rising, rows, weights).masked_fill_(wrong[:, None], torch.nan)


def _fake(
    states: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    rows: Tensor | None,
    partial: Tensor | None,
) -> Tensor:
    dtype = torch.float32 if counts is None else states.dtype
    return states.new_empty((offsets.shape[0] - 1, states.shape[1]), dtype=dtype)


# Index tensors are views of a batch's one buffer, aligned as they happen to be: no special case.
@jit(do_not_specialize=["offsets", "counts", "rows", "texts", "tokens", "total"])
def _segment_pool_kernel(
    states: tl.tensor,
    states_stride: tl.tensor,
    offsets: tl.tensor,
    counts: tl.tensor,
    rows: tl.tensor,
    partial: tl.tensor,
    partial_stride: tl.tensor,
    pooled: tl.tensor,
    texts: int,
    tokens: int,
    total: int,
    WIDTH: tl.constexpr,
    MEAN: tl.constexpr,
    GATHER: tl.constexpr,
    PARTIAL: tl.constexpr,
    TEXTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    # A batch may hold more than 2^31 elements, so texts and rows are counted in int64.
    text = tl.program_id(0).to(tl.int64) * TEXTS + tl.arange(0, TEXTS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    text_inside = text < texts
    column_inside = (columns < WIDTH)[None, :]
    begin = tl.load(offsets + text, mask=text_inside, other=0).to(tl.int64)
    end = tl.load(offsets + text + 1, mask=text_inside, other=0).to(tl.int64)
    # Where an offset or a row is out of range nothing is read, and the text becomes NaN.
    wrong = (begin < 0) | (end < begin) | (end > total) | ((text == 0) & (begin != 0))
    if GATHER:
        wrong = wrong | ((text == texts - 1) & (end != total))
    end = tl.where(wrong, begin, end)
    sums = tl.zeros([TEXTS, COLUMNS], dtype=tl.float32)
    longest = tl.max(end - begin, axis=0)
    # Rows are added one after another, and what is ahead of them is loaded meanwhile.
    for step in tl.range(0, longest, UNROLL, num_stages=STAGES):
        for ahead in tl.static_range(UNROLL):
            row = begin + step + ahead
            inside = row < end
            if GATHER:
                row = tl.load(rows + row, mask=inside, other=0).to(tl.int64)
                known = (row >= 0) & (row < tokens)
                wrong = wrong | (inside & ~known)
                inside = inside & known
            at = row[:, None] * states_stride + columns[None, :]
            x = tl.load(states + at, mask=inside[:, None] & column_inside, other=0.0)
            sums += x.to(tl.float32)
    inside = text_inside[:, None] & column_inside
    if PARTIAL:
        at = text[:, None] * partial_stride + columns[None, :]
        sums += tl.load(partial + at, mask=inside, other=0.0)
    if MEAN:
        count = tl.load(counts + text, mask=text_inside, other=1)
        wrong = wrong | (count < 1)
        sums = tl.div_rn(sums, tl.broadcast_to(count.to(tl.float32)[:, None], sums.shape))
    result = tl.where(wrong[:, None], float("nan"), sums)
    at = text[:, None] * WIDTH + columns[None, :]
    tl.store(pooled + at, result.to(pooled.dtype.element_ty), mask=inside)


def _triton_form(
    states: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    rows: Tensor | None,
    partial: Tensor | None,
) -> Tensor:
    pooled = _fake(states, offsets, counts, rows, partial)
    texts, width = pooled.shape
    if texts == 0:
        return pooled
    states = readable(states)
    partial = None if partial is None else readable(partial)
    tile = pooling_tile(width, gather=rows is not None)
    _segment_pool_kernel[(cdiv(texts, tile.texts), cdiv(width, tile.columns))](
        states,
        states.stride(0),
        readable(offsets),
        offsets if counts is None else readable(counts),
        offsets if rows is None else readable(rows),
        pooled if partial is None else partial,
        0 if partial is None else partial.stride(0),
        pooled,
        texts,
        states.shape[0],
        states.shape[0] if rows is None else rows.shape[0],
        WIDTH=width,
        MEAN=counts is not None,
        GATHER=rows is not None,
        PARTIAL=partial is not None,
        TEXTS=tile.texts,
        COLUMNS=tile.columns,
        UNROLL=tile.unroll,
        STAGES=tile.stages,
        num_warps=tile.num_warps,
        enable_fp_fusion=FP_FUSION,
    )
    return pooled


class PoolingTile(NamedTuple):
    """What one program works on.

    Attributes:
        texts: a power of two.
        columns: of a row, a power of two.
        unroll: rows of a text that are added in one step.
        stages: steps under way at once: one is added while the others are loaded.
        num_warps: warps of a program.
    """

    texts: int
    columns: int
    unroll: int
    stages: int
    num_warps: int


def pooling_tile(width: int, *, gather: bool) -> PoolingTile:
    """The tile for states of a width; the number and lengths of the texts never change it.

    A warp takes 256 columns: 16 bytes of each row for every thread in 16 bits, 32 in float32. It
    adds row after row, so only rows under way hide the latency of the memory: 16 of each of 128
    texts, 768 wide, are 3 MB, about what a GPU reads in that time. Gathered rows are not loaded
    steps ahead, for each would wait for its number first; the numbers of 8 are loaded at once
    instead, more than the windows of most texts. Narrow rows share a program.
    """
    columns = min(next_power_of_2(width), 256)
    unroll, stages = (8, 1) if gather else (4, 5)
    return PoolingTile(256 // columns, columns, unroll, stages, num_warps=1)


def _check(
    states: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    rows: Tensor | None,
    partial: Tensor | None,
) -> None:
    """Checks what can be checked without reading the tensors."""
    check_rows("states", states)
    if offsets.ndim != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int32:
        refuse("offsets", offsets, "[texts + 1] int32")
    texts = offsets.shape[0] - 1
    if counts is not None and (counts.shape != (texts,) or counts.dtype != torch.int32):
        refuse("counts", counts, f"[{texts}] int32")
    if rows is not None and (rows.ndim != 1 or rows.dtype != torch.int32):
        refuse("rows", rows, "[R] int32")
    if partial is not None:
        shape = (texts, states.shape[1])
        if partial.shape != shape or partial.dtype != torch.float32:
            refuse("partial", partial, f"{list(shape)} float32")
    given = {"offsets": offsets, "counts": counts, "rows": rows, "partial": partial}
    for name, tensor in given.items():
        if tensor is not None and tensor.device != states.device:
            refuse(name, tensor, f"a tensor on {states.device}, as states is")


def _check_offsets(states: Tensor, offsets: Tensor, rows: Tensor | None) -> None:
    """Raises where an offset is not as it must be; waits for the device."""
    host = offsets.cpu()
    first, last = int(host[0]), int(host[-1])
    if first != 0:
        raise InputError(f"offsets begins with {first}; expected 0")
    falls = (host.diff() < 0).nonzero()
    if len(falls):
        text = int(falls[0])
        fall = f"from {int(host[text])} to {int(host[text + 1])} at text {text}"
        raise InputError(f"offsets falls {fall}; expected offsets that rise")
    if rows is None and last > len(states):
        raise InputError(
            f"offsets ends with {last}; expected {len(states)}, the number of states, at most"
        )
    if rows is not None and last != len(rows):
        raise InputError(f"offsets ends with {last}; expected the number of rows, {len(rows)}")


def _check_counts(counts: Tensor | None) -> None:
    """Raises where a count is below 1; waits for the device."""
    if counts is None:
        return
    low = (counts < 1).nonzero()
    if len(low):
        text = int(low[0])
        raise InputError(f"counts gives text {text} {int(counts[text])}; expected 1 or more")


def _check_values(states: Tensor, offsets: Tensor, rows: Tensor | None) -> None:
    """Our own mistakes, found where reading the tensors costs no wait."""
    with as_the_compiled_op("segment_pool"):
        _check_offsets(states, offsets, rows)
        if rows is not None and bool(((rows < 0) | (rows >= len(states))).any()):
            raise InputError(f"rows names a row out of range; states has {len(states)} rows")


complete_op(
    "segment_pool",
    "(Tensor states, Tensor offsets, Tensor? counts, Tensor? rows, Tensor? partial) -> Tensor",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
    compiled=False,
)
