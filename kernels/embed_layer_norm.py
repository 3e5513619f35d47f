"""BERT's input in one pass: three embeddings added and normalised.

With ``round`` for rounding to the tables' dtype, for every token with id ``i`` at position ``p``:

1. ``x = round(word_embeddings[i] + token_type)``
2. ``s = round(x + position_embeddings[p])``
3. ``mean = mean(s)`` and ``inverse = 1 / sqrt(mean((s - mean)^2) + eps)``, in float32
4. ``normed = round((s - mean) * inverse * weight + bias)``

This is the rounding order of transformers' ``BertEmbeddings``. A NaN or an infinity in a row makes
its whole ``normed`` row NaN.

The op is ``torch.ops.c2v.embed_layer_norm``, for inference only: it has no gradient. On CUDA it is
the Triton kernel below: one launch, in which every row is read once. Everywhere else the PyTorch
form below serves under the same name; its last steps are ``torch.ops.c2v.add_layer_norm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.kernels._gather import gather_known_rows, gather_rows
from c2v_engine.kernels._ops import check_like, check_rows, complete_op, refuse
from c2v_engine.kernels._tiles import MAX_TILE_COLUMNS, row_tile
from c2v_engine.kernels._triton import jit, readable, tl
from c2v_engine.kernels.add_layer_norm import add_layer_norm_reference, normalize_tile

__all__ = ["embed_layer_norm", "embed_layer_norm_reference"]


def embed_layer_norm(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Gathers, adds and normalises the embeddings of packed tokens.

    Nothing waits for the device: an id out of range is an error on the CPU, and makes a row of NaN
    on CUDA.

    Args:
        token_ids: ``[tokens]`` int32, rows of ``word_embeddings``.
        position_ids: ``[tokens]`` int32, rows of ``position_embeddings``.
        word_embeddings: ``[vocab, k]`` float32, float16 or bfloat16.
        position_embeddings: ``[positions, k]`` of the same dtype and device.
        token_type: ``[k]``, likewise, the embedding of the type that every token has.
        weight: ``[k]``, likewise, of the LayerNorm.
        bias: ``[k]``, likewise.
        eps: its epsilon.

    Returns:
        ``[tokens, k]``, the normalised rows, in new memory.

    Raises:
        InputError: a shape, dtype or device is not as described.
        IndexError: on the CPU, an id is out of range.
    """
    _check(token_ids, position_ids, word_embeddings, position_embeddings, token_type, weight, bias)
    normed: Tensor = torch.ops.c2v.embed_layer_norm(
        token_ids, position_ids, word_embeddings, position_embeddings, token_type, weight, bias, eps
    )
    return normed


def embed_layer_norm_reference(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``embed_layer_norm`` for arguments, result and errors.
    """
    _check(token_ids, position_ids, word_embeddings, position_embeddings, token_type, weight, bias)
    x = _gather(word_embeddings, token_ids) + token_type
    positions = _gather(position_embeddings, position_ids)
    return add_layer_norm_reference(x, positions, weight, bias, eps=eps)


def _pytorch_form(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    x = _gather(word_embeddings, token_ids).add_(token_type)
    positions = _gather(position_embeddings, position_ids)
    normed: Tensor = torch.ops.c2v.add_layer_norm(x, positions, weight, bias, eps)
    return normed


def _gather(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table; of an id out of range NaN on CUDA, where an error would have to wait."""
    return gather_known_rows(table, ids) if ids.is_cuda else gather_rows(table, ids)


def _fake(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    return word_embeddings.new_empty((token_ids.shape[0], word_embeddings.shape[1]))


# Index tensors are views of a batch's one buffer, aligned as they happen to be: no special case.
@jit(do_not_specialize=["token_ids", "position_ids", "tokens", "words", "positions"])
def _embed_layer_norm_kernel(
    token_ids: tl.tensor,
    position_ids: tl.tensor,
    word_embeddings: tl.tensor,
    word_stride: tl.tensor,
    position_embeddings: tl.tensor,
    position_stride: tl.tensor,
    token_type: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normed: tl.tensor,
    tokens: int,
    words: int,
    positions: int,
    eps: float,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch and a table may hold more than 2^31 elements, so rows are counted in int64.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    row_inside = rows < tokens
    column_inside = columns < HIDDEN
    word = tl.load(token_ids + rows, mask=row_inside, other=0).to(tl.int64)
    position = tl.load(position_ids + rows, mask=row_inside, other=0).to(tl.int64)
    known = (word >= 0) & (word < words) & (position >= 0) & (position < positions)
    # Of an id out of range nothing is read, and NaN stands for what it would have been.
    found = (row_inside & known)[:, None] & column_inside[None, :]
    at = word[:, None] * word_stride + columns[None, :]
    total = tl.load(word_embeddings + at, mask=found, other=float("nan")).to(tl.float32)
    addend = tl.load(token_type + columns, mask=column_inside, other=0.0).to(tl.float32)
    total = (total + addend[None, :]).to(word_embeddings.dtype.element_ty).to(tl.float32)
    at = position[:, None] * position_stride + columns[None, :]
    addend = tl.load(position_embeddings + at, mask=found, other=0.0).to(tl.float32)
    total = (total + addend).to(word_embeddings.dtype.element_ty).to(tl.float32)
    total = tl.where(column_inside[None, :], total, 0.0)
    factor = tl.load(weight + columns, mask=column_inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float32)
    result = normalize_tile(total, column_inside, factor, shift, eps, HIDDEN)
    inside = row_inside[:, None] & column_inside[None, :]
    at = rows[:, None] * HIDDEN + columns[None, :]
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=inside)


def _triton_form(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    tokens, width = token_ids.shape[0], word_embeddings.shape[1]
    if width > MAX_TILE_COLUMNS:
        return _pytorch_form(
            token_ids,
            position_ids,
            word_embeddings,
            position_embeddings,
            token_type,
            weight,
            bias,
            eps,
        )
    normed = word_embeddings.new_empty((tokens, width))
    if tokens == 0:
        return normed
    words, positions = readable(word_embeddings), readable(position_embeddings)
    tile = row_tile(width)
    _embed_layer_norm_kernel[tile.grid(tokens)](
        readable(token_ids),
        readable(position_ids),
        words,
        words.stride(0),
        positions,
        positions.stride(0),
        readable(token_type),
        readable(weight),
        readable(bias),
        normed,
        tokens,
        words.shape[0],
        positions.shape[0],
        eps,
        HIDDEN=width,
        **tile.options,
    )
    return normed


def _check(
    token_ids: Tensor,
    position_ids: Tensor,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> None:
    check_rows("word_embeddings", word_embeddings)
    width, device = word_embeddings.shape[1], word_embeddings.device
    if token_ids.ndim != 1 or token_ids.dtype != torch.int32 or token_ids.device != device:
        refuse("token_ids", token_ids, f"[tokens] int32 on {device}")
    tokens = token_ids.shape[0]
    wrong_type = position_ids.dtype != torch.int32 or position_ids.device != device
    if position_ids.shape != (tokens,) or wrong_type:
        refuse("position_ids", position_ids, f"[{tokens}] int32 on {device}")
    check_rows("position_embeddings", position_embeddings)
    shape = (position_embeddings.shape[0], width)
    check_like("position_embeddings", position_embeddings, shape, word_embeddings)
    for name, given in (("token_type", token_type), ("weight", weight), ("bias", bias)):
        check_like(name, given, (width,), word_embeddings)


complete_op(
    "embed_layer_norm",
    "(Tensor token_ids, Tensor position_ids, Tensor word_embeddings, Tensor position_embeddings, "
    "Tensor token_type, Tensor weight, Tensor bias, float eps) -> Tensor",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
    compiled=False,
)
