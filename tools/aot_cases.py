"""What the engine asks of its Triton kernels: every op, at the shapes of real models.

A case is the arguments of one op as the engine passes them, as tensors without values: shapes,
dtypes, strides and alignment are there, no memory is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["BATCH", "CASES", "DTYPES", "MODELS", "Batch", "Case", "Model", "cases_of"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Model:
    """Sizes that the launches depend on.

    Attributes:
        name: as a reader knows it.
        hidden: width of its rows.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: size of a head.
        intermediate: width of its MLP.
        kind: a decoder like Llama, an encoder like BERT, or its heads alone.
        qkv_bias: whether Q, K and V have biases.
        qk_norm: whether queries and keys are normalised.
        window: of its sliding-window attention, or None.
    """

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int = 0
    kind: Literal["decoder", "encoder", "heads"] = "decoder"
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_dim


MODELS = (
    Model("Mistral-7B", 4096, 32, 8, 128, 14336, window=4096),
    Model("S-LLaMA-1.3B", 2048, 16, 16, 128, 5504),
    Model("Qwen2.5-0.5B", 896, 14, 2, 64, 4864, qkv_bias=True),
    Model("Qwen3-0.6B", 1024, 16, 8, 128, 3072, qk_norm=True),
    Model("BERT-base", 768, 12, 12, 64, 3072, kind="encoder"),
    # Sizes of a head that other models have.
    Model("heads of 80", 2560, 32, 32, 80, kind="heads"),
    Model("heads of 96", 3072, 32, 32, 96, kind="heads"),
    Model("heads of 256", 2048, 8, 4, 256, kind="heads"),
)
VOCABULARY, POSITIONS, PROJECTOR = 32000, 512, 2048
PROMPT = 30
"""Tokens whose keys stand before those of every text."""


@dataclass(frozen=True)
class Batch:
    """How much there is to do; nothing of this may decide what is compiled."""

    tokens: int = 4000
    texts: int = 40
    longest: int = 200


BATCH = Batch()


class Case(NamedTuple):
    """Arguments of one call.

    Attributes:
        op: its name.
        model: whose shapes they are.
        dtype: of the computation.
        variant: what sets them apart from the op's other cases for this model, or "".
        arguments: in the order of the op's schema.
    """

    op: str
    model: str
    dtype: torch.dtype
    variant: str
    arguments: tuple[Any, ...]

    @property
    def label(self) -> str:
        """The case in words."""
        dtype = str(self.dtype).removeprefix("torch.")
        return ", ".join(part for part in (self.op, self.variant, self.model, dtype) if part)


class _Tensors:
    """Makes tensors of one dtype without values."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device="meta")

    def int32(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device="meta")

    def float32(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="meta")


Variants = Iterator[tuple[str, tuple[Any, ...]]]
Maker = Callable[[Model, Batch, _Tensors], Variants]


def _add_rms_norm(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind != "decoder":
        return
    rows, weight = new(batch.tokens, model.hidden), new(model.hidden)
    yield "alone", (rows, None, weight, 1e-6)
    yield "", (rows, torch.empty_like(rows), weight, 1e-6)


def _add_layer_norm(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind != "encoder":
        return
    x, vector = new(batch.tokens, model.hidden), new(model.hidden)
    yield "", (x, torch.empty_like(x), vector, vector, 1e-12, None)
    yield "with x's bias", (x, torch.empty_like(x), vector, vector, 1e-12, vector)


def _silu_and_mul(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind == "decoder":
        yield "", (new(batch.tokens, 2 * model.intermediate),)


def _quantize_rows(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind == "decoder":  # what attention gives
        yield "", (new(batch.tokens, model.query_size),)
        # Where the gate's activation is not SiLU, no pass of ours quantises the product.
        yield "of a gated product", (new(batch.tokens, model.intermediate),)


def _bias_act(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind == "decoder":  # the gate of a joined gate and up, where it is not SiLU's
        gate, _ = new(batch.tokens, 2 * model.intermediate).chunk(2, dim=1)
        yield "gelu_tanh of a gate", (gate, None, "gelu_tanh")
    if model.kind != "encoder":
        return
    x, bias = new(batch.tokens, model.intermediate), new(model.intermediate)
    for activation in ("gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"):
        yield f"{activation} and bias", (x, bias, activation)
        if activation != "identity":  # which leaves nothing to do
            yield activation, (x, None, activation)
    yield "gelu of the projector", (new(batch.texts, PROJECTOR), None, "gelu")


def _embed_layer_norm(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind != "encoder":
        return
    ids, vector = new.int32(batch.tokens), new(model.hidden)
    words, positions = new(VOCABULARY, model.hidden), new(POSITIONS, model.hidden)
    yield "", (ids, torch.empty_like(ids), words, positions, vector, vector, vector, 1e-12)


def _segment_pool(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind != "encoder":
        return
    states, offsets = new(batch.tokens, model.hidden), new.int32(batch.texts + 1)
    counts, rows = new.int32(batch.texts), new.int32(batch.texts)
    partial = new.float32(batch.texts, model.hidden)
    for name, chosen in (("", None), ("chosen rows", rows)):
        for end, before in (("", None), ("partial sums", partial)):
            variant = " and ".join(part for part in (name, end) if part)
            yield variant, (states, offsets, counts, chosen, before)
            yield f"sums {variant}".strip(), (states, offsets, None, chosen, before)


def _prefix_concat(model: Model, batch: Batch, new: _Tensors) -> Variants:
    if model.kind != "decoder":
        return
    ids, table = new.int32(batch.tokens), new(VOCABULARY, model.hidden)
    yield "", (ids, table, new(batch.texts, model.hidden))
    yield "no context", (ids, table, None)
    # The keys and values of a shared prompt, before every text's own: of all layers but the last
    # these are views of the joined projection.
    width = 2 * model.key_size
    joined = new(batch.tokens, model.query_size + width)[:, model.query_size :]
    yield "keys behind a prompt", (ids, joined, new(batch.texts, width))


def _qk_norm_rope(model: Model, batch: Batch, new: _Tensors) -> Variants:
    """All heads of a row, and as in the last layer, queries of chosen rows and keys of all."""
    if model.kind == "encoder":
        return
    heads, kv_heads, size = model.heads, model.kv_heads, model.head_dim
    tables = new(POSITIONS, size // 2), new(POSITIONS, size // 2)
    norms = (new(size), new(size)) if model.qk_norm else (None, None)
    width = model.query_size + 2 * model.key_size
    chosen = 2 * batch.texts
    for name, rows, first, last, counts in (
        ("", batch.tokens, 0, width, (heads, kv_heads)),
        ("queries", chosen, 0, model.query_size, (heads, 0)),
        ("keys", batch.tokens, model.query_size, width, (0, kv_heads)),
    ):
        arguments = (new(rows, last - first), *counts, size, new.int32(rows), *tables, *norms, 1e-6)
        yield name, (*arguments, None)
        if model.qkv_bias:
            yield f"{name} with bias".strip(), (*arguments, new(width)[first:last])


def _packed_attention(model: Model, batch: Batch, new: _Tensors) -> Variants:
    """From all rows of the fused buffer, and from one or two chosen rows of every sequence.

    The keys of all rows are their own, or in joined buffers those of a prompt too.
    """
    scale, longest = model.head_dim**-0.5, batch.longest + PROMPT
    cu_seqlens, bounds = new.int32(batch.texts + 1), new.int32(3, batch.tokens)
    query, key, value = _heads(model, new(batch.tokens, model.query_size + 2 * model.key_size))
    for window in (-1,) if model.window is None else (-1, model.window):
        name = "" if window < 0 else "window"
        mask = (model.kind != "encoder", window, scale)
        start = (key, value, cu_seqlens, batch.longest)
        yield name, (query, *start, *mask, None, bounds)
        yield f"{name} made bounds".strip(), (query, *start, *mask, None, None)
        key_value = new(batch.tokens + batch.texts * PROMPT, 2 * model.key_size)
        after = (query, *_heads(replace(model, heads=0), key_value), cu_seqlens, longest, *mask)
        yield f"{name} after a prompt".strip(), (*after, None, bounds, torch.empty_like(cu_seqlens))
        key_value = new(batch.tokens, 2 * model.key_size)
        last_key, last_value = _heads(replace(model, heads=0), key_value)
        start = (last_key, last_value, cu_seqlens, batch.longest)
        for n in (1, 2):
            chosen = new(n * batch.texts, model.heads, model.head_dim)
            rows = new.int32(n * batch.texts)
            yield f"{name} {n} rows".strip(), (chosen, *start, *mask, rows, None)


def _heads(model: Model, joined: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value heads as views of one buffer."""
    parts = joined.split((model.query_size, model.key_size, model.key_size), dim=1)
    return tuple(part.unflatten(1, (-1, model.head_dim)) for part in parts if part.shape[1])


CASES: dict[str, Maker] = {
    "add_rms_norm": _add_rms_norm,
    "add_rms_norm_fp8": _add_rms_norm,
    "add_layer_norm": _add_layer_norm,
    "add_layer_norm_fp8": _add_layer_norm,
    "silu_and_mul": _silu_and_mul,
    "silu_and_mul_fp8": _silu_and_mul,
    "quantize_rows_fp8": _quantize_rows,
    "bias_act_": _bias_act,
    "embed_layer_norm": _embed_layer_norm,
    "segment_pool": _segment_pool,
    "prefix_concat": _prefix_concat,
    "qk_norm_rope_": _qk_norm_rope,
    "packed_attention": _packed_attention,
}
"""What makes the cases of each op."""


def cases_of(op: str, batch: Batch = BATCH) -> Iterator[Case]:
    """Every case of one op, for every model and dtype."""
    for model in MODELS:
        # float16 and bfloat16 are launched alike, so the models' own sizes show it for heads too.
        for dtype in DTYPES if model.kind != "heads" else (torch.bfloat16, torch.float32):
            for variant, arguments in CASES[op](model, batch, _Tensors(dtype)):
                yield Case(op, model.name, dtype, variant, arguments)
