"""What ``packed_attention`` refuses: arguments and values that are not as it describes them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import refuse

__all__ = [
    "MAX_HEADS",
    "MAX_HEAD_DIM",
    "MAX_TOKENS",
    "check_arguments",
    "check_offsets",
    "check_scalars",
    "check_values",
    "is_whole",
]

MAX_HEAD_DIM = 256
MAX_HEADS = 65535
"""As many programs as CUDA starts along the second axis of a grid, where the heads stand."""
MAX_TOKENS = 2**31 - 1024
"""The kernels count keys in int32, up to a block beyond the last."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FLOAT32_MAX = torch.finfo(torch.float32).max


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor | None,
    row_bounds: Tensor | None,
    cu_seqlens_q: Tensor | None,
) -> None:
    """Checks what can be checked without reading the tensors.

    Raises:
        InputError: a shape, dtype or device is not as ``packed_attention`` describes it, or
            ``query_rows`` and ``cu_seqlens_q`` are both given.
    """
    _check_heads(query, key, value)
    check_offsets(cu_seqlens)
    rows, tokens = query.shape[0], key.shape[0]
    if query_rows is not None and cu_seqlens_q is not None:
        raise InputError(
            "query_rows and cu_seqlens_q are both given; expected one of them: query_rows may name "
            "any rows of the key sequences"
        )
    if query_rows is not None:
        _check_rows(rows, cu_seqlens.shape[0] - 1, query_rows)
    elif cu_seqlens_q is not None:
        if cu_seqlens_q.shape != cu_seqlens.shape or cu_seqlens_q.dtype != torch.int32:
            expected = f"{list(cu_seqlens.shape)} int32, as cu_seqlens is"
            refuse("cu_seqlens_q", cu_seqlens_q, expected)
        # The values tell whether there are more than keys: torch.export takes no such guard.
        if rows > MAX_TOKENS:
            refuse("query", query, f"at most {MAX_TOKENS} rows")
    elif rows != tokens:
        expected = "query_rows or cu_seqlens_q that tell which"
        refuse("query", query, f"the {tokens} rows of key, or {expected}")
    # The form for chosen rows reads no bounds; those of all rows may be given to it.
    bounded = tokens if query_rows is not None else rows
    if row_bounds is not None and (
        row_bounds.shape != (3, bounded) or row_bounds.dtype != torch.int32
    ):
        refuse("row_bounds", row_bounds, f"[3, {bounded}] int32")
    given = {"key": key, "value": value, "cu_seqlens": cu_seqlens}
    optional = {"query_rows": query_rows, "row_bounds": row_bounds, "cu_seqlens_q": cu_seqlens_q}
    for name, tensor in {**given, **optional}.items():
        if tensor is not None and tensor.device != query.device:
            refuse(name, tensor, f"a tensor on {query.device}, as query is")


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.ndim != 3 or query.dtype not in _DTYPES:
        refuse("query", query, "[rows, heads, D] float32, float16 or bfloat16")
    _, heads, head_dim = query.shape
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


def check_offsets(cu_seqlens: Tensor) -> None:
    """Checks that offsets are ``[batch + 1]`` int32.

    Raises:
        InputError: they are not.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype != torch.int32:
        refuse("cu_seqlens", cu_seqlens, "[batch + 1] int32")


def check_scalars(max_seqlen: int, window: int | None, scale: float) -> None:
    """Checks the numbers.

    Raises:
        InputError: one is not as ``packed_attention`` describes it.
    """
    if not is_whole(max_seqlen) or not 0 <= max_seqlen < 2**31:
        raise InputError(
            f"max_seqlen is {max_seqlen!r}; expected the length of the longest sequence"
        )
    if window is not None and (not is_whole(window) or not 1 <= window < 2**31):
        raise InputError(
            f"window is {window!r}; give an int from 1 to 2^31 - 1, or None for no window"
        )
    if not _is_finite(scale):
        raise InputError(f"scale is {scale!r}; expected a number that is finite in float32")


def is_whole(number: Any) -> bool:
    """Whether something is an integer, a traced one included."""
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


def check_values(
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    query_rows: Tensor | None,
    cu_seqlens_q: Tensor | None,
) -> None:
    """Checks the offsets and the chosen rows; waits for the device.

    Raises:
        InputError: an offset or a row is not as it must be.
    """
    rows, tokens = query.shape[0], key.shape[0]
    offsets = cu_seqlens.cpu().long()
    _check_ends("cu_seqlens", offsets, f"the {tokens} rows of key", tokens)
    lengths = offsets.diff()
    wrong = ((lengths < 0) | (lengths > max_seqlen)).nonzero()
    if len(wrong):
        sequence = int(wrong[0])
        raise InputError(
            f"cu_seqlens gives sequence {sequence} a length of {int(lengths[sequence])}; "
            f"expected 0 to max_seqlen, {max_seqlen}"
        )
    if query_rows is not None and len(lengths):
        _check_row_values(offsets, query_rows.cpu().view(len(lengths), -1))
    if cu_seqlens_q is None:
        return
    query_offsets = cu_seqlens_q.cpu().long()
    _check_ends("cu_seqlens_q", query_offsets, f"the {rows} rows of query", rows)
    queries = query_offsets.diff()
    wrong = ((queries < 0) | (queries > lengths)).nonzero()
    if len(wrong):
        sequence = int(wrong[0])
        raise InputError(
            f"cu_seqlens_q gives sequence {sequence} a length of {int(queries[sequence])}; "
            f"expected 0 to its keys, {int(lengths[sequence])}"
        )


def _check_ends(name: str, offsets: Tensor, rows: str, end: int) -> None:
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != end:
        raise InputError(f"{name} runs from {first} to {last}; expected from 0 to {rows}")


def _check_row_values(offsets: Tensor, rows: Tensor) -> None:
    outside = ((rows < offsets[:-1, None]) | (rows >= offsets[1:, None])).nonzero()
    if len(outside):
        sequence, place = outside[0].tolist()
        raise InputError(
            f"query_rows[{sequence * rows.shape[1] + place}] is {int(rows[sequence, place])}, but "
            f"sequence {sequence} has the rows {int(offsets[sequence])} to "
            f"{int(offsets[sequence + 1])}"
        )
