"""The Triton kernels of ``packed_attention``: all rows of short sequences, and chosen rows.

A program owns a tile of queries, each a token with one of the query heads that share a key head, so
that keys and values are read once for the whole group. Whatever the mask, a query whose own key is
packed row ``i``, in a sequence from ``first`` to before ``last``, sees the rows from
``max(first, i - left + 1)`` to before ``min(last, i + right)``: ``left`` is the window, and
``right`` is 1 under a causal mask, else the window too. One kernel serves all masks. In it

1. the keys run from the tile's lowest bound to its highest, in blocks
2. ``s = (q . k) * scale * log2(e)``, minus infinity outside of the query's own bounds
3. ``m' = max(m, max s)``, ``p = 2^(s - m')``, ``l = l * 2^(m - m') + sum p``,
   ``o = o * 2^(m - m') + round(p) . v``
4. the result is ``round(o / l)`` after the last block

with float32 scores, softmax and sums, and ``round`` to the tensors' dtype. Products of float32 are
float32's own, not TF32's.

**All rows**, or the last of every sequence. A tile takes the next packed queries wherever sequences
end, so that no row of a tile is padding; where their keys stand is read, so that keys may have no
query. Sequences that share a tile are kept apart by their bounds alone, and meet in the product
``round(p) . v``, where a weight of zero does not stop a NaN. A tile that comes out not finite is
therefore computed again, one sequence after the other.

**Chosen rows.** A program reads the keys and values of one sequence for its chosen rows.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from c2v_engine.kernels._attention_tiles import AttentionTile, all_rows_tile, chosen_rows_tile
from c2v_engine.kernels._triton import cdiv, jit, readable, tl

__all__ = ["attend_all_rows", "attend_chosen_rows"]

_LOG2_E = math.log2(math.e)
_INT32_MAX = 2**31 - 1


@jit()
def _attend(
    q: tl.tensor,
    key: tl.tensor,
    key_stride: tl.tensor,
    value: tl.tensor,
    value_stride: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scale: float,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OFFSET: tl.constexpr,
) -> tl.tensor:
    """The attention of a tile of queries.

    Args:
        q: the queries, [ROWS, COLUMNS], zero beyond the head size.
        key: pointer to the key from which the bounds count.
        key_stride: elements from one key to the next.
        value: likewise.
        value_stride: likewise.
        low: the first key that each query sees, int32 [ROWS].
        high: the first that it no longer sees; a query with none has a ``low`` at or above it.
        scale: factor of the scores, times log2(e).
        HEAD_DIM: the head size.
        ROWS: of the tile.
        KEYS: of a block.
        COLUMNS: of the tile.
        OFFSET: the integer type that holds every offset within a block.

    Returns:
        float32 [ROWS, COLUMNS]; NaN for a query that sees no key.
    """
    start = tl.min(low, axis=0)
    end = tl.max(high, axis=0)
    columns = tl.arange(0, COLUMNS)
    block = tl.arange(0, KEYS)
    key_at = block[:, None].to(OFFSET) * key_stride + columns[None, :]
    value_at = block[:, None].to(OFFSET) * value_stride + columns[None, :]
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(start, end, KEYS):
        keys = begin + block
        passed = tl.cast(begin, tl.int64)
        inside = (keys < end)[:, None] & (columns < HEAD_DIM)[None, :]
        k = tl.load(key + passed * key_stride + key_at, mask=inside, other=0.0)
        v = tl.load(value + passed * value_stride + value_at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # A query that has seen no key yet has nothing to subtract.
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        weights = tl.exp2(scores - shift[:, None])
        correction = tl.exp2(largest - shift)
        total = total * correction + tl.sum(weights, axis=1)
        mixed = mixed * correction[:, None]
        mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        largest = new_largest
    # Nothing seen, or nothing but scores of minus infinity.
    total = tl.where(total == 0.0, float("nan"), total)
    return mixed / total[:, None]


@jit(do_not_specialize=["bounds", "queries", "tokens", "left", "right"])
def _all_rows_kernel(
    query: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    output: tl.tensor,
    output_stride: tl.tensor,
    bounds: tl.tensor,
    queries: int,
    tokens: int,
    left: int,
    right: int,
    scale: float,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    tile_queries: tl.constexpr = ROWS // PART
    parts: tl.constexpr = (GROUP + PART - 1) // PART
    far: tl.constexpr = 2147483647
    kv_head = (tl.program_id(1) // parts).to(tl.int64)
    first_member = tl.program_id(1) % parts * PART
    first_head = kv_head * GROUP + first_member
    # A batch may hold more than 2^31 elements; int32 is enough to count rows.
    first_query = tl.program_id(0).to(tl.int64) * tile_queries
    row = tl.arange(0, ROWS)
    number = row // PART
    member = row % PART
    present = tl.minimum(queries - first_query, tile_queries).to(tl.int32)
    there = (number < present) & (first_member + member < GROUP)
    bounds += first_query
    first = tl.load(bounds + number, mask=there, other=0)
    last = tl.load(bounds + queries + number, mask=there, other=0)
    token = tl.load(bounds + queries + queries + number, mask=there, other=0)
    # What is wrong in the bounds gives a NaN row and reads nothing out of range.
    valid = there & (first >= 0) & (last <= tokens) & (first <= token) & (token < last)
    low = tl.maximum(first, token - left + 1)
    # The sum of a row near 2^31 and of what stands right of it would pass int32.
    high = token + tl.minimum(right, last - token)
    last = tl.where(valid, last, -far)

    columns = tl.arange(0, COLUMNS)
    query += first_query * query_stride + first_head * query_head_stride
    key += kv_head * key_head_stride
    value += kv_head * value_head_stride
    output += first_query * output_stride + first_head * HEAD_DIM
    at = (number.to(OFFSET) * query_stride + member.to(OFFSET) * query_head_stride)[:, None]
    inside = there[:, None] & (columns < HEAD_DIM)[None, :]
    q = tl.load(query + at + columns[None, :], mask=inside, other=0.0)
    at = (number * output_stride + member * HEAD_DIM)[:, None] + columns[None, :]
    mine = there
    done = -far
    more = 1
    while more != 0:
        wanted = mine & valid
        result = _attend(
            q,
            key,
            key_stride,
            value,
            value_stride,
            tl.where(wanted, low, far),
            tl.where(wanted, high, -far),
            scale,
            HEAD_DIM,
            ROWS,
            KEYS,
            COLUMNS,
            OFFSET,
        )
        inside = mine[:, None] & (columns < HEAD_DIM)[None, :]
        tl.store(output + at, result.to(output.dtype.element_ty), mask=inside)
        # A sequence that is not finite may have reached others: each once more, alone.
        unsound = tl.where(inside & ~(tl.abs(result) < float("inf")), 1, 0)
        # Triton 3.6 can not compile the first form for Blackwell's tensor cores, and 3.9 spills on
        # the second in float32.
        if q.dtype == tl.float32:
            worst = tl.max(tl.max(unsound, axis=1), axis=0)
        else:
            worst = tl.max(unsound)
        again = (worst != 0) | (done != -far)
        done = tl.min(tl.where(last > done, last, far), axis=0)
        mine = last == done
        more = (again & (done != far)).to(tl.int32)


@jit(do_not_specialize=["cu_seqlens", "query_rows", "chosen", "tiles", "tokens", "left", "right"])
def _chosen_rows_kernel(
    query: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    output: tl.tensor,
    output_stride: tl.tensor,
    cu_seqlens: tl.tensor,
    query_rows: tl.tensor,
    chosen: int,
    tiles: int,
    tokens: int,
    left: int,
    right: int,
    scale: float,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    far: tl.constexpr = 2147483647
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    first = tl.load(cu_seqlens + sequence).to(tl.int64)
    last = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    # A sequence's tiles may hold more than 2^31 queries; within a tile int32 counts its rows.
    begin = (tl.program_id(0) % tiles).to(tl.int64) * ROWS
    first_number = begin // GROUP
    row = (begin % GROUP).to(tl.int32) + tl.arange(0, ROWS)
    number = row // GROUP
    member = row % GROUP
    there = number < chosen - first_number
    first_query = sequence * chosen + first_number
    token = tl.load(query_rows + first_query + number, mask=there, other=-1).to(tl.int64)
    valid = there & (first >= 0) & (last <= tokens) & (token >= first) & (token < last)
    length = tl.minimum(last - first, tokens).to(tl.int32)
    token = (token - first).to(tl.int32)
    low = tl.where(valid, tl.maximum(token - left + 1, 0), far)
    # The sum of a row near 2^31 and of what stands right of it would pass int32.
    high = tl.where(valid, token + tl.minimum(right, length - token), -far)

    columns = tl.arange(0, COLUMNS)
    inside = there[:, None] & (columns < HEAD_DIM)[None, :]
    query += first_query * query_stride + kv_head * GROUP * query_head_stride
    at = (number.to(OFFSET) * query_stride + member.to(OFFSET) * query_head_stride)[:, None]
    q = tl.load(query + at + columns[None, :], mask=inside, other=0.0)
    result = _attend(
        q,
        key + first * key_stride + kv_head * key_head_stride,
        key_stride,
        value + first * value_stride + kv_head * value_head_stride,
        value_stride,
        low,
        high,
        scale,
        HEAD_DIM,
        ROWS,
        KEYS,
        COLUMNS,
        OFFSET,
    )
    output += first_query * output_stride + kv_head * GROUP * HEAD_DIM
    at = (number.to(OFFSET) * output_stride + member * HEAD_DIM)[:, None] + columns[None, :]
    tl.store(output + at, result.to(output.dtype.element_ty), mask=inside)


def attend_all_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> Tensor:
    """Attends from every packed query; the arguments are those of the op, and -1 is no window."""
    output = query.new_empty(query.shape)
    queries, heads, head_dim = query.shape
    if queries == 0:
        return output
    tokens, kv_heads = key.shape[0], key.shape[1]
    group = heads // kv_heads
    tile = all_rows_tile(head_dim, query.dtype)
    # A group that no tile holds is cut into equal parts.
    parts = cdiv(group, tile.rows)
    part = cdiv(group, parts)
    rows = tile.rows // part
    query, key, value = readable(query), readable(key), readable(value)
    left = tokens if window < 0 else min(window, tokens)
    _all_rows_kernel[(cdiv(queries, rows), kv_heads * parts)](
        *_heads(query, key, value),
        output,
        output.stride(0),
        bounds.contiguous(),
        queries,
        tokens,
        left,
        1 if causal else left,
        scale * _LOG2_E,
        GROUP=group,
        PART=part,
        HEAD_DIM=head_dim,
        OFFSET=_offset_type(query, key, value, tile, rows, part),
        **tile.options,
    )
    return output


def attend_chosen_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> Tensor:
    """Attends from chosen rows; the arguments are those of the op, and -1 is no window."""
    output = query.new_empty(query.shape)
    rows, heads, head_dim = query.shape
    if rows == 0:
        return output
    batch, tokens, kv_heads = cu_seqlens.shape[0] - 1, key.shape[0], key.shape[1]
    group, chosen = heads // kv_heads, rows // batch
    tile = chosen_rows_tile(head_dim, query.dtype)
    query, key, value = readable(query), readable(key), readable(value)
    left = tokens if window < 0 else min(window, tokens)
    tiles = cdiv(chosen * group, tile.rows)
    # Only the first axis of a grid takes more than 65,535 programs.
    _chosen_rows_kernel[(batch * tiles, kv_heads)](
        *_heads(query, key, value),
        output,
        output.stride(0),
        cu_seqlens.contiguous(),
        query_rows.contiguous(),
        chosen,
        tiles,
        tokens,
        left,
        1 if causal else left,
        scale * _LOG2_E,
        GROUP=group,
        HEAD_DIM=head_dim,
        OFFSET=_offset_type(query, key, value, tile, cdiv(tile.rows, group) + 1, group),
        **tile.options,
    )
    return output


def _heads(*tensors: Tensor) -> list[Any]:
    """Each tensor with its strides of rows and heads, as the kernels take them."""
    return [part for tensor in tensors for part in (tensor, tensor.stride(0), tensor.stride(1))]


def _offset_type(
    query: Tensor, key: Tensor, value: Tensor, tile: AttentionTile, rows: int, heads: int
) -> Any:
    """The integer type for offsets within a tile of queries or a block of keys.

    Args:
        query: ``[rows, heads, D]``.
        key: likewise.
        value: likewise.
        tile: of the kernel.
        rows: of ``query`` that its offsets span.
        heads: of ``query`` that they span.
    """
    largest = max(
        rows * query.stride(0) + heads * query.stride(1),
        tile.keys * max(key.stride(0), value.stride(0)),
    )
    return tl.int32 if largest + tile.columns <= _INT32_MAX else tl.int64
