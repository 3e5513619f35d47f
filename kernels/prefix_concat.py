"""The decoder's packed input, contextual rows in their places, in one pass.

Token ids say where every row of the buffer comes from:

- ``id >= 0``: row ``id`` of the decoder's embedding table (BOS, EOS, prompt and text alike)
- ``id < 0``: row ``-1 - id`` of the contextual tokens, so -1 is the first text's

Sequences stand end to end, and a text's contextual row wherever its template has ``<context>``. Two
texts in the paper's template, ``["<context>", "{prompt}{text}", "<eos>"]`` (arXiv 2507.23386)::

    token_ids   -1  p  p  a  a  a  E | -2  p  p  b  b  E
    row         c0  p  p  a  a  a  E | c1  p  p  b  b  E
                <- first sequence -> | <-  second   ->

and with the instruction first, ``["{prompt}", "<context>", "{text}", "<eos>"]``::

    token_ids    p  p -1  a  a  a  E |  p  p -2  b  b  E
    row          p  p c0  a  a  a  E |  p  p c1  b  b  E

Rows are copied, so nothing is rounded.

The op is ``torch.ops.c2v.prefix_concat``, for inference only: it has no gradient. On CUDA it is the
Triton kernel below, one launch; everywhere else the PyTorch form below serves under the same name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2v_engine.kernels._gather import gather_known_rows, gather_rows
from c2v_engine.kernels._ops import check_like, check_rows, complete_op, refuse
from c2v_engine.kernels._tiles import element_tile
from c2v_engine.kernels._triton import jit, readable, tl

__all__ = ["prefix_concat", "prefix_concat_reference"]


def prefix_concat(token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None) -> Tensor:
    """Gathers the decoder's packed input from the embedding table and the contextual tokens.

    Nothing waits for the device: an id out of range is an error on the CPU, and makes a row of NaN
    on CUDA.

    Args:
        token_ids: ``[tokens]`` int32; what is negative names a contextual row.
        embed_tokens: ``[vocab, d]`` float32, float16 or bfloat16.
        contextual: ``[contexts, d]`` of the same dtype and device, or None where no id is negative.

    Returns:
        ``[tokens, d]``, in new memory.

    Raises:
        InputError: a shape, dtype or device is not as described.
        IndexError: on the CPU, an id is out of range.
    """
    _check(token_ids, embed_tokens, contextual)
    rows: Tensor = torch.ops.c2v.prefix_concat(token_ids, embed_tokens, contextual)
    return rows


def prefix_concat_reference(
    token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None
) -> Tensor:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``prefix_concat`` for arguments, result and errors.
    """
    _check(token_ids, embed_tokens, contextual)
    return _pytorch_form(token_ids, embed_tokens, contextual)


def _pytorch_form(token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None) -> Tensor:
    if token_ids.device.type == "cuda":
        return _without_waiting(token_ids, embed_tokens, contextual)
    if contextual is None:
        return gather_rows(embed_tokens, token_ids)
    # No table to read the other rows of before they are overwritten.
    if not len(embed_tokens) and not bool((token_ids >= 0).any()):
        return gather_rows(contextual, -1 - token_ids)
    rows = gather_rows(embed_tokens, token_ids.clamp(min=0))
    places = (token_ids < 0).nonzero().squeeze(1)
    return rows.index_copy_(0, places, gather_rows(contextual, -1 - token_ids[places]))


def _without_waiting(token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None) -> Tensor:
    """The same with NaN for what is out of range; no step needs a value on the host."""
    rows = gather_known_rows(embed_tokens, token_ids)
    if contextual is None:
        return rows
    chosen = gather_known_rows(contextual, -1 - token_ids)
    return torch.where((token_ids < 0)[:, None], chosen, rows)


def _fake(token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None) -> Tensor:
    return embed_tokens.new_empty((token_ids.shape[0], embed_tokens.shape[1]))


# Ids are a view of a batch's one buffer, aligned as they happen to be: no special case.
@jit(do_not_specialize=["token_ids", "tokens", "words", "contexts"])
def _prefix_concat_kernel(
    token_ids: tl.tensor,
    embed_tokens: tl.tensor,
    embed_stride: tl.tensor,
    contextual: tl.tensor,
    contextual_stride: tl.tensor,
    output: tl.tensor,
    tokens: int,
    words: int,
    contexts: int,
    WIDTH: tl.constexpr,
    CONTEXT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    # A batch and a table may hold more than 2^31 elements, so rows are counted in int64.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside = rows < tokens
    column_inside = columns < WIDTH
    ids = tl.load(token_ids + rows, mask=row_inside, other=0).to(tl.int64)
    # Of an id out of range nothing is read, and its row is NaN.
    known = row_inside & (ids >= 0) & (ids < words)
    at = ids[:, None] * embed_stride + columns[None, :]
    found = known[:, None] & column_inside[None, :]
    result = tl.load(embed_tokens + at, mask=found, other=float("nan"))
    if CONTEXT:
        # A second load that most rows skip, for a choice between two pointers would cost the
        # knowledge that both are aligned.
        places = -1 - ids
        known = row_inside & (places >= 0) & (places < contexts)
        at = places[:, None] * contextual_stride + columns[None, :]
        found = known[:, None] & column_inside[None, :]
        chosen = tl.load(contextual + at, mask=found, other=float("nan"))
        result = tl.where(known[:, None], chosen, result)
    at = rows[:, None] * WIDTH + columns[None, :]
    tl.store(output + at, result, mask=row_inside[:, None] & column_inside[None, :])


def _triton_form(token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None) -> Tensor:
    output = _fake(token_ids, embed_tokens, contextual)
    tokens, width = output.shape
    if tokens == 0:
        return output
    words = readable(embed_tokens)
    contexts = words if contextual is None else readable(contextual)
    tile = element_tile(width)
    _prefix_concat_kernel[tile.grid(tokens)](
        readable(token_ids),
        words,
        words.stride(0),
        contexts,
        contexts.stride(0),
        output,
        tokens,
        words.shape[0],
        contexts.shape[0],
        WIDTH=width,
        CONTEXT=contextual is not None,
        **tile.options,
    )
    return output


def _check(token_ids: Tensor, embed_tokens: Tensor, contextual: Tensor | None) -> None:
    check_rows("embed_tokens", embed_tokens)
    device = embed_tokens.device
    if token_ids.ndim != 1 or token_ids.dtype != torch.int32 or token_ids.device != device:
        refuse("token_ids", token_ids, f"[tokens] int32 on {device}")
    if contextual is not None:
        check_rows("contextual", contextual)
        shape = (contextual.shape[0], embed_tokens.shape[1])
        check_like("contextual", contextual, shape, embed_tokens)


complete_op(
    "prefix_concat",
    "(Tensor token_ids, Tensor embed_tokens, Tensor? contextual) -> Tensor",
    _pytorch_form,
    _fake,
    triton_form=_triton_form,
    compiled=False,
)
