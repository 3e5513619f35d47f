"""Segment pooling: the packed token states of a batch into one row for each text.

Text ``t`` has the states ``x_i = states[i]``, ``offsets[t] <= i < offsets[t + 1]``, or where ``rows``
is given ``x_i = states[rows[i]]``. In float32, with ``round`` for rounding to the states' dtype:

1. ``sum = x_first + ... + x_last``, one after another in this order; 0 for an empty segment
2. where ``partial`` is given, ``sum = sum + partial[t]``
3. where ``counts`` is given, the result is ``round(sum / counts[t])``, else ``sum``

A text's sum is formed in an order that its own rows alone decide, so it has the same bits in every
batch. States beyond the last offset belong to no text.

The op is ``torch.ops.c2v.segment_pool``, for inference only: it has no gradient. Everywhere but on
CUDA the PyTorch form below serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import can_validate, check_rows, complete_op, refuse

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

    All tensors are on one device. With ``validate=False`` nothing waits for the device: what is
    wrong in the *values* of ``offsets`` or ``rows`` is an error on the CPU, and makes the text's
    row NaN on CUDA.

    Args:
        states: ``[tokens, k]`` float32, float16 or bfloat16; its rows may be strided.
        offsets: ``[texts + 1]`` int32, rising from 0 to the number of ``rows``; without ``rows`` to
            the number of states at most.
        counts: ``[texts]`` int32, what each sum is divided by; None for the sums.
        rows: ``[R]`` int32, rows of ``states``; None for all of them, as they stand.
        partial: ``[texts, k]`` float32, added to the sums.
        validate: whether ``offsets`` is read, and waited for, to check it.

    Returns:
        ``[texts, k]`` in new memory: means of the states' dtype, or float32 sums.

    Raises:
        InputError: a shape, dtype or device is not as described; where validated, the offsets do
            not rise as described.
        RuntimeError: on the CPU, an offset or a row is out of range.
    """
    _check(states, offsets, counts, rows, partial)
    if validate and can_validate(offsets):
        complaint = _wrong_offsets(states, offsets, rows)
        if complaint is not None:
            raise InputError(complaint)
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
        complaint = _wrong_offsets(states, offsets, rows)
        if complaint is not None:
            raise InputError(complaint)
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
    return sums if counts is None else (sums / counts[:, None]).to(states.dtype)


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
        weights = torch.zeros_like(rows, dtype=torch.float32).masked_fill_(outside, torch.nan) + 1
    begin, end = offsets[:-1], offsets[1:]
    wrong = (begin < 0) | (end < begin) | (end > total)
    rising = offsets.clamp(0, total).cummax(0).values
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


def _wrong_offsets(states: Tensor, offsets: Tensor, rows: Tensor | None) -> str | None:
    """What is wrong with the offsets' values, in words; reads them, so waits for the device."""
    host = offsets.cpu()
    first, last = int(host[0]), int(host[-1])
    if first != 0:
        return f"offsets begins with {first}; expected 0"
    falls = (host.diff() < 0).nonzero()
    if len(falls):
        at = int(falls[0])
        return f"offsets falls from {int(host[at])} to {int(host[at + 1])} at text {at}"
    if rows is not None and last != len(rows):
        return f"offsets ends with {last}; expected the number of rows, {len(rows)}"
    if rows is None and last > len(states):
        return f"offsets ends with {last}; expected {len(states)}, the number of states, at most"
    return None


def _check_values(states: Tensor, offsets: Tensor, rows: Tensor | None) -> None:
    """Our own mistakes, found where reading the tensors costs no wait."""
    complaint = _wrong_offsets(states, offsets, rows)
    if rows is not None and bool(((rows < 0) | (rows >= len(states))).any()):
        complaint = f"rows has one out of range; states has {len(states)} rows"
    if complaint is not None:
        raise RuntimeError(f"segment_pool: {complaint}")


complete_op(
    "segment_pool",
    "(Tensor states, Tensor offsets, Tensor? counts, Tensor? rows, Tensor? partial) -> Tensor",
    _pytorch_form,
    _fake,
    compiled=False,
)
