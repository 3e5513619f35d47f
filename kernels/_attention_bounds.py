"""Which keys stand in the sequence of each packed query, for the Triton form of all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._attention_checks import check_offsets, is_whole
from c2v_engine.kernels._ops import refuse

__all__ = ["check_bounds", "row_bounds"]


def row_bounds(cu_seqlens: Tensor, tokens: int, cu_seqlens_q: Tensor | None = None) -> Tensor:
    """Where the key sequence of each packed query begins and ends, and which key is its own.

    Nothing waits for the device.

    Args:
        cu_seqlens: ``[batch + 1]`` int32, from 0 to the rows of the keys.
        tokens: packed rows of the queries.
        cu_seqlens_q: ``[batch + 1]`` int32, from 0 to tokens, where only the last rows of the
            sequences are queries. None where every row is one.

    Returns:
        ``[3, tokens]`` int32: the first key, the one past the last, and the query's own, which is
        -1 for a row that ``cu_seqlens_q`` gives to no sequence or that has no key there.

    Raises:
        InputError: offsets are not ``[batch + 1]`` int32, or tokens not a number of rows.
    """
    check_offsets(cu_seqlens)
    if not is_whole(tokens) or not 0 <= tokens < 2**31:
        raise InputError(f"tokens is {tokens!r}; expected an int from 0 to 2^31 - 1")
    query_offsets = cu_seqlens if cu_seqlens_q is None else cu_seqlens_q
    if query_offsets.shape != cu_seqlens.shape or query_offsets.dtype != torch.int32:
        expected = f"{list(cu_seqlens.shape)} int32, as cu_seqlens is"
        refuse("cu_seqlens_q", query_offsets, expected)
    if cu_seqlens.shape[0] < 2:
        return cu_seqlens.new_full((3, tokens), -1)
    # A search and no repetition: offsets that do not rise would end the CUDA context there.
    ends = query_offsets[1:].contiguous()
    rows = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    sequences = torch.searchsorted(ends, rows, right=True).clamp_(max=len(ends) - 1)
    bounds = torch.stack([cu_seqlens[:-1], cu_seqlens[1:]]).index_select(1, sequences)
    if cu_seqlens_q is None:
        return torch.cat([bounds, rows[None]])
    first, last = bounds.unbind()
    begin, end = torch.stack([query_offsets[:-1], ends]).index_select(1, sequences).unbind()
    # In int64: offsets that nobody checked may be of any size.
    keys = last.long() - end + rows
    own = (rows >= begin) & (first <= keys) & (keys < last)
    return torch.cat([bounds, torch.where(own, keys, -1).int()[None]])


def check_bounds(cu_seqlens: Tensor, bounds: Tensor | None, cu_seqlens_q: Tensor | None) -> None:
    """Checks that bounds, where they are given, are those of valid offsets; waits for the device.

    Raises:
        InputError: they are not.
    """
    if bounds is None:
        return
    tokens = bounds.shape[1]
    expected = row_bounds(cu_seqlens, tokens, cu_seqlens_q)
    wrong = (bounds != expected).any(dim=0).nonzero()
    if len(wrong):
        row = int(wrong[0])
        (first, last, own), (low, high, key) = bounds[:, row].tolist(), expected[:, row].tolist()
        call = f"{tokens}" if cu_seqlens_q is None else f"{tokens}, cu_seqlens_q"
        raise InputError(
            f"row_bounds gives row {row} the sequence from {first} to {last} and the key {own}, "
            f"but cu_seqlens from {low} to {high} and {key}; give row_bounds(cu_seqlens, {call})"
        )
