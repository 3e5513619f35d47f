"""QK-norm and rotary position embedding (arXiv 2104.09864) of queries and keys, in place.

A row of ``qkv`` begins with its query heads, then its key heads, each ``D`` wide; what follows are
the values. With ``round`` for rounding to the tensors' dtype, for every row, and then for every
query and key head ``h`` of a row at position ``p``:

0. where ``bias`` is given, ``row = round(row + bias)``, over all columns, the values included; else
   the values are neither read nor written
1. where the norm is given, as in Qwen3,
   ``h = round(norm * round(h / sqrt(mean(h^2) + eps)))``, the mean in float32
2. with ``h = [h1 ; h2]`` halved, ``c = cos[p]`` and ``s = sin[p]``,
   ``h = [round(round(h1 c) - round(h2 s)) ; round(round(h2 c) + round(h1 s))]``

This is the rounding order of transformers' ``apply_rotary_pos_emb``, to the bit; the compiled CPU
kernel may round a product of float32 and its sum at once. ``bias`` is the joined one of Q, K and V,
for a matrix product that left it out.

Queries, keys and values stay where the product wrote them, in one buffer, and strided views of it
are what attention reads: ``qkv.split(...)`` is the split, and nothing is copied for it. So one
launch reads and writes ``heads * D`` values of a row, the query and key heads alone, where a split
into new tensors moves all of its columns; with ``bias`` it is all of them. The tables' rows are a
few, shared by every head, and come from the cache.

The op is ``torch.ops.c2v.qk_norm_rope_``, for inference only: it has no gradient. On CUDA it is the
Triton kernel below. Its compiled CPU kernel stands in ``csrc/``; everywhere else the PyTorch form
below serves under the same name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import (
    check_apart,
    check_eps,
    check_like,
    check_rows,
    complete_op,
    refuse,
)
from c2v_engine.kernels._tiles import row_tile
from c2v_engine.kernels._triton import cdiv, jit, readable, tl

__all__ = ["qk_norm_rope_", "qk_norm_rope_reference_"]

# A thread has 16 values of a head and of all that it is combined with, more than the 64 registers
# of a program of 1,024 threads hold. A wider head is left to the PyTorch form.
_MAX_HEAD_DIM = 8192
# Fused with its sum, a product in 16 bits would not be rounded first: the compiler takes the way to
# 16 bits and back between the two for one that it may leave out.
_ROUNDS_EVERY_PRODUCT = {"enable_fp_fusion": False}


def qk_norm_rope_(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
) -> None:
    """Normalises and rotates the first ``(num_query_heads + num_key_heads) * head_dim`` columns.

    Nothing waits for the device: a position outside of the tables is an error on the CPU, and makes
    the row's query and key heads NaN elsewhere.

    Args:
        qkv: ``[tokens, width]`` float32, float16 or bfloat16, written in place; its rows must be
            contiguous and may be strided.
        positions: ``[tokens]`` int32, of each row.
        cos: ``[positions, head_dim / 2]`` of qkv's dtype and device.
        sin: likewise.
        num_query_heads: the heads that ``query_norm`` is for; 0 where the columns begin with keys
            or, with no key heads either, are not rotated at all.
        num_key_heads: the heads that ``key_norm`` is for, or 0.
        head_dim: size D of a head, even.
        query_norm: ``[head_dim]`` of qkv's dtype and device, or None for no norm.
        key_norm: likewise.
        eps: epsilon of both norms.
        bias: ``[width]`` of qkv's dtype and device, added to all columns first, or None.

    Raises:
        InputError: a shape, dtype, device, stride or count is not as described.
        RuntimeError: a position is negative or beyond the tables, on the CPU.
    """
    _check(qkv, positions, cos, sin, num_query_heads, num_key_heads, head_dim)
    check_eps(eps)
    _check_vectors(qkv, head_dim, query_norm, key_norm, bias)
    torch.ops.c2v.qk_norm_rope_(
        qkv,
        num_query_heads,
        num_key_heads,
        head_dim,
        positions,
        cos,
        sin,
        query_norm,
        key_norm,
        eps,
        bias,
    )


def qk_norm_rope_reference_(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
) -> None:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``qk_norm_rope_`` for arguments and errors.
    """
    _check(qkv, positions, cos, sin, num_query_heads, num_key_heads, head_dim)
    check_eps(eps)
    _check_vectors(qkv, head_dim, query_norm, key_norm, bias)
    _pytorch_form(
        qkv,
        num_query_heads,
        num_key_heads,
        head_dim,
        positions,
        cos,
        sin,
        query_norm,
        key_norm,
        eps,
        bias,
    )


# PyTorch leaves out a trailing argument that has its default, so the forms have the same default.


def _pytorch_form(
    qkv: Tensor,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    bias: Tensor | None = None,
) -> None:
    if positions.device.type == "cpu" and bool(((positions < 0) | (positions >= len(cos))).any()):
        raise RuntimeError(
            f"qk_norm_rope_: a position is out of range; the tables have {len(cos)} positions"
        )
    if bias is not None:
        qkv += bias
    row_cos, row_sin = (_table_rows(table, positions) for table in (cos, sin))
    start = 0
    for heads, norm in ((num_query_heads, query_norm), (num_key_heads, key_norm)):
        columns = qkv[:, start : start + heads * head_dim]
        start += heads * head_dim
        if heads:
            states = columns.unflatten(1, (heads, head_dim))
            states = states if norm is None else _rms_norm(states, norm, eps)
            first, second = states.chunk(2, dim=-1)
            halves = (first * row_cos - second * row_sin, second * row_cos + first * row_sin)
            columns.copy_(torch.cat(halves, dim=-1).flatten(1))


def _table_rows(table: Tensor, positions: Tensor) -> Tensor:
    """A table's rows ``[tokens, 1, head_dim / 2]``, NaN for a position outside of it."""
    if positions.device.type == "cpu":  # there it was an error
        return table.index_select(0, positions).unsqueeze(1)
    outside = (positions < 0) | (positions >= len(table))
    rows = table.index_select(0, positions.masked_fill(outside, 0))
    return rows.masked_fill(outside.unsqueeze(1), torch.nan).unsqueeze(1)


def _rms_norm(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = heads.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (wide * inverse).to(heads.dtype)


def _fake(
    qkv: Tensor,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    bias: Tensor | None = None,
) -> None:
    return None


@jit()
def _load_norm(
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    at: tl.tensor,
    of_query: tl.tensor,
    inside: tl.tensor,
    TWO_NORMS: tl.constexpr,
) -> tl.tensor:
    """The norm's weight for each row; of two norms a row loads its own alone."""
    if TWO_NORMS:
        weight = tl.load(query_norm + at, mask=inside & of_query, other=0.0)
        weight = tl.load(key_norm + at, mask=inside & (of_query == 0), other=weight)
    else:
        weight = tl.load(query_norm + at, mask=inside, other=0.0)
    return weight.to(tl.float32)


@jit(do_not_specialize=["positions", "tokens", "table_rows"])
def _qk_norm_rope_kernel(
    qkv: tl.tensor,
    qkv_stride: tl.tensor,
    bias: tl.tensor,
    positions: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    tokens: int,
    table_rows: int,
    eps: float,
    COS_STRIDE: tl.constexpr,
    SIN_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    ROTATED_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERY_NORM: tl.constexpr,
    KEY_NORM: tl.constexpr,
    TWO_NORMS: tl.constexpr,
    ADD_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """A row of the tile is a head, of which a thread has the same columns of both halves.

    Heads are numbered through the batch, ``HEADS`` a token: queries, keys, and where there is a
    bias the values, as though these were in heads too. A tile has a vector of its own for every
    thread, so that none writes what another one has yet to read.
    """
    half = HEAD_DIM // 2
    dtype = qkv.dtype.element_ty
    # A batch may hold more than 2^31 elements, so heads are counted in int64; those of a program,
    # from its first token on, in int32, which divides faster.
    first = tl.program_id(0).to(tl.int64) * ROWS
    local = (first % HEADS).to(tl.int32) + tl.arange(0, ROWS)
    head = (local % HEADS)[:, None]
    token = first // HEADS + local // HEADS
    row_inside = token < tokens
    columns = tl.arange(0, COLUMNS // 2)[None, :]
    half_inside = columns < half

    # The loads come first, so that they are under way together.
    position = tl.load(positions + token, mask=row_inside, other=-1).to(tl.int64)[:, None]
    in_row = head * HEAD_DIM + columns
    at = token[:, None] * qkv_stride + in_row
    inside_1 = row_inside[:, None] & half_inside
    inside_2 = inside_1
    if HEADS * HEAD_DIM > WIDTH:  # the values end within a head
        inside_1 = inside_1 & (in_row < WIDTH)
        inside_2 = inside_2 & (in_row + half < WIDTH)
    x1 = tl.load(qkv + at, mask=inside_1, other=0.0).to(tl.float32)
    x2 = tl.load(qkv + at + half, mask=inside_2, other=0.0).to(tl.float32)
    found = (position >= 0) & (position < table_rows) & (head < ROTATED_HEADS) & half_inside
    c = tl.load(cos + position * COS_STRIDE + columns, mask=found, other=float("nan"))
    s = tl.load(sin + position * SIN_STRIDE + columns, mask=found, other=float("nan"))
    c, s = c.to(tl.float32), s.to(tl.float32)

    if ADD_BIAS:
        b1 = tl.load(bias + in_row, mask=inside_1, other=0.0).to(tl.float32)
        b2 = tl.load(bias + in_row + half, mask=inside_2, other=0.0).to(tl.float32)
        x1 = (x1 + b1).to(dtype).to(tl.float32)
        x2 = (x2 + b2).to(dtype).to(tl.float32)
    h1, h2 = x1, x2
    if QUERY_NORM or KEY_NORM:
        of_query = head < QUERY_HEADS
        in_head = tl.broadcast_to(columns, in_row.shape)
        w1 = _load_norm(query_norm, key_norm, in_head, of_query, half_inside, TWO_NORMS)
        w2 = _load_norm(query_norm, key_norm, in_head + half, of_query, half_inside, TWO_NORMS)
        inverse = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=1) / HEAD_DIM + eps)[:, None]
        h1 = (w1 * (x1 * inverse).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
        h2 = (w2 * (x2 * inverse).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
        if not (QUERY_NORM and KEY_NORM):
            normed = of_query if QUERY_NORM else head >= QUERY_HEADS
            h1, h2 = tl.where(normed, h1, x1), tl.where(normed, h2, x2)
    y1 = (h1 * c).to(dtype).to(tl.float32) - (h2 * s).to(dtype).to(tl.float32)
    y2 = (h2 * c).to(dtype).to(tl.float32) + (h1 * s).to(dtype).to(tl.float32)
    if ROTATED_HEADS < HEADS:
        y1 = tl.where(head < ROTATED_HEADS, y1, x1)
        y2 = tl.where(head < ROTATED_HEADS, y2, x2)
    tl.store(qkv + at, y1.to(dtype), mask=inside_1)
    tl.store(qkv + at + half, y2.to(dtype), mask=inside_2)


def _triton_form(
    qkv: Tensor,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    bias: Tensor | None = None,
) -> None:
    tokens, width = qkv.shape
    rotated = num_query_heads + num_key_heads
    heads = rotated if bias is None else cdiv(width, head_dim)
    if head_dim > _MAX_HEAD_DIM:
        arguments = (num_query_heads, num_key_heads, head_dim, positions, cos, sin)
        _pytorch_form(qkv, *arguments, query_norm, key_norm, eps, bias)
        return
    if tokens == 0 or heads == 0:
        return
    cos, sin = readable(cos), readable(sin)
    # A kind without heads follows the other, so that all of the rows are treated alike.
    query_norm = query_norm if num_query_heads else key_norm
    key_norm = key_norm if num_key_heads else query_norm
    norms = [readable(norm) for norm in (query_norm, key_norm) if norm is not None] or [cos]
    tile = row_tile(head_dim)
    _qk_norm_rope_kernel[tile.grid(tokens * heads)](
        qkv,
        qkv.stride(0),
        qkv if bias is None else readable(bias),
        readable(positions),
        cos,
        sin,
        norms[0],
        norms[-1],
        tokens,
        len(cos),
        eps,
        COS_STRIDE=cos.stride(0),
        SIN_STRIDE=sin.stride(0),
        HEAD_DIM=head_dim,
        QUERY_HEADS=num_query_heads,
        ROTATED_HEADS=rotated,
        HEADS=heads,
        WIDTH=width,
        QUERY_NORM=query_norm is not None,
        KEY_NORM=key_norm is not None,
        TWO_NORMS=min(num_query_heads, num_key_heads) > 0,
        ADD_BIAS=bias is not None,
        **(tile.options | _ROUNDS_EVERY_PRODUCT),
    )


def _check(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
) -> None:
    """Checks what can be checked without reading the tensors."""
    check_rows("qkv", qkv, written=True)
    if head_dim < 2 or head_dim % 2:
        raise InputError(f"head_dim is {head_dim}; the rotation needs an even size of at least 2")
    if num_query_heads < 0 or num_key_heads < 0:
        raise InputError(
            f"num_query_heads is {num_query_heads} and num_key_heads {num_key_heads}; "
            "neither may be negative"
        )
    heads = num_query_heads + num_key_heads
    if heads * head_dim > qkv.shape[1]:
        refuse("qkv", qkv, f"at least {heads} heads of {head_dim}, {heads * head_dim} columns")
    if (
        positions.shape != qkv.shape[:1]
        or positions.dtype != torch.int32
        or positions.device != qkv.device
    ):
        refuse("positions", positions, f"[{qkv.shape[0]}] int32 on {qkv.device}")
    if cos.ndim != 2:
        refuse("cos", cos, f"[positions, {head_dim // 2}]")
    check_like("cos", cos, (cos.shape[0], head_dim // 2), qkv)
    check_like("sin", sin, (cos.shape[0], head_dim // 2), qkv)
    for name, tensor in (("positions", positions), ("cos", cos), ("sin", sin)):
        check_apart(name, tensor, "qkv", qkv)


def _check_vectors(
    qkv: Tensor,
    head_dim: int,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    bias: Tensor | None,
) -> None:
    width = qkv.shape[1]
    vectors = (("query_norm", query_norm, head_dim), ("key_norm", key_norm, head_dim))
    for name, vector, size in (*vectors, ("bias", bias, width)):
        if vector is not None:
            check_like(name, vector, (size,), qkv)
            check_apart(name, vector, "qkv", qkv)


complete_op(
    "qk_norm_rope_",
    "(Tensor(a!) qkv, int num_query_heads, int num_key_heads, int head_dim, Tensor positions, "
    "Tensor cos, Tensor sin, Tensor? query_norm, Tensor? key_norm, float eps, "
    "Tensor? bias=None) -> ()",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
)
