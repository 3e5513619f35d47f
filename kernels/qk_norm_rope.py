"""QK-norm and rotary position embedding (arXiv 2104.09864) of queries and keys, in place.

A row of ``qkv`` begins with its query heads, then its key heads, each ``D`` wide; what follows, the
values, is left as it is. With ``round`` for rounding to the tensors' dtype, for every head ``h`` of
a row at position ``p``:

1. where the norm is given, as in Qwen3,
   ``h = round(norm * round(h / sqrt(mean(h^2) + eps)))``, the mean in float32
2. with ``h = [h1 ; h2]`` halved, ``c = cos[p]`` and ``s = sin[p]``,
   ``h = [round(round(h1 c) - round(h2 s)) ; round(round(h2 c) + round(h1 s))]``

This is the rounding order of transformers' ``apply_rotary_pos_emb``. float32 may round a product
and its sum at once.

The op is ``torch.ops.c2v.qk_norm_rope_``, for inference only: it has no gradient. Its compiled CPU
kernel stands in ``csrc/``; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._ops import check_like, check_rows, complete_op, refuse

__all__ = ["qk_norm_rope_", "qk_norm_rope_reference_"]


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
) -> None:
    """Normalises and rotates the first ``(num_query_heads + num_key_heads) * head_dim`` columns.

    Nothing waits for the device: a position outside of the tables is found on the CPU alone.

    Args:
        qkv: ``[tokens, width]`` float32, float16 or bfloat16, written in place; its rows must be
            contiguous and may be strided.
        positions: ``[tokens]`` int32, of each row.
        cos: ``[positions, head_dim / 2]`` of qkv's dtype and device.
        sin: likewise.
        num_query_heads: the heads that ``query_norm`` is for; 0 where the columns begin with keys.
        num_key_heads: the heads that ``key_norm`` is for, or 0.
        head_dim: size D of a head, even.
        query_norm: ``[head_dim]`` of qkv's dtype and device, or None for no norm.
        key_norm: likewise.
        eps: epsilon of both norms.

    Raises:
        InputError: a shape, dtype, device, stride or count is not as described.
        RuntimeError: a position is negative or beyond the tables, on the CPU.
    """
    _check(qkv, positions, cos, sin, num_query_heads, num_key_heads, head_dim, query_norm, key_norm)
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
) -> None:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``qk_norm_rope_`` for arguments and errors.
    """
    _check(qkv, positions, cos, sin, num_query_heads, num_key_heads, head_dim, query_norm, key_norm)
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
    )


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
) -> None:
    if positions.device.type == "cpu" and bool(((positions < 0) | (positions >= len(cos))).any()):
        raise RuntimeError(
            f"qk_norm_rope_: a position is out of range; the tables have {len(cos)} positions"
        )
    row_cos = cos.index_select(0, positions).unsqueeze(1)
    row_sin = sin.index_select(0, positions).unsqueeze(1)
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
) -> None:
    return None


def _check(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_query_heads: int,
    num_key_heads: int,
    head_dim: int,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
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
    for name, norm in (("query_norm", query_norm), ("key_norm", key_norm)):
        if norm is not None:
            check_like(name, norm, (head_dim,), qkv)


complete_op(
    "qk_norm_rope_",
    "(Tensor(a!) qkv, int num_query_heads, int num_key_heads, int head_dim, Tensor positions, "
    "Tensor cos, Tensor sin, Tensor? query_norm, Tensor? key_norm, float eps) -> ()",
    _pytorch_form,
    _fake,
)
