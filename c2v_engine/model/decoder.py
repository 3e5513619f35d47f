"""The decoder: Llama, Mistral, Qwen2 and Qwen3 as one packed forward, fused weights, no padding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.kernels.add_rms_norm import add_rms_norm
from c2v_engine.kernels.bias_act import bias_act_
from c2v_engine.kernels.prefix_concat import prefix_concat
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_
from c2v_engine.kernels.silu_and_mul import silu_and_mul
from c2v_engine.model.activations import get_activation
from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.lora import LoraAdapter
from c2v_engine.model.packed_batch import PackedSequences
from c2v_engine.model.rope import rope_table
from c2v_engine.model.rounding import rounded_pooled
from c2v_engine.model.weights import WeightFolder

# Tensors that checkpoints of these architectures may hold and the forward does not need.
_UNUSED_WEIGHTS = ("lm_head.weight", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class DecoderShape:
    """What a decoder's transformers config says about its forward.

    Attributes:
        vocab_size: rows of the embedding table.
        hidden_size: width d.
        intermediate_size: width of the MLP.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads.
        head_dim: size D of a head.
        rms_norm_eps: epsilon of every RMSNorm.
        activation: of the gated MLP.
        qkv_bias: whether the Q, K and V projections have biases.
        output_bias: whether the attention's output projection has one.
        mlp_bias: whether the MLP's projections have them.
        qk_norm: whether queries and keys are normalised head by head.
        windows: the sliding window of each layer, or None.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)

    @classmethod
    def from_transformers(cls, config: Any, where: str) -> DecoderShape:
        """Read a transformers config.

        Raises:
            UnsupportedError: an architecture, activation or layer type that is not implemented.
            CheckpointError: sizes that do not fit together.
        """
        kind = config.model_type
        if kind not in ("llama", "mistral", "qwen2", "qwen3"):
            raise UnsupportedError(
                f"{where}: decoder architecture {kind!r} is not supported; "
                "known are llama, mistral, qwen2, qwen3"
            )
        if getattr(config, "quantization_config", None) is not None:
            raise UnsupportedError(f"{where}: quantised checkpoints are not supported")
        if getattr(config, "pretraining_tp", 1) not in (1, None):
            raise UnsupportedError(f"{where}: pretraining_tp other than 1 is not supported")
        heads = config.num_attention_heads
        if heads % (config.num_key_value_heads or heads):
            raise CheckpointError(
                f"{where}: num_key_value_heads is {config.num_key_value_heads}, "
                f"which does not divide num_attention_heads {heads}"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        if head_dim % 2:
            raise UnsupportedError(f"{where}: head_dim {head_dim} is odd, which rope can not halve")
        attention_bias = bool(getattr(config, "attention_bias", False)) and kind != "mistral"
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads or heads,
            head_dim=head_dim,
            rms_norm_eps=config.rms_norm_eps,
            activation=get_activation(config.hidden_act, where),
            qkv_bias=kind == "qwen2" or attention_bias,
            output_bias=kind in ("llama", "qwen3") and attention_bias,
            mlp_bias=kind == "llama" and bool(getattr(config, "mlp_bias", False)),
            qk_norm=kind == "qwen3",
            windows=_layer_windows(config, where),
        )


def _layer_windows(config: Any, where: str) -> tuple[int | None, ...]:
    layers: int = config.num_hidden_layers
    window: int | None = getattr(config, "sliding_window", None)
    layer_types: list[str] | None = getattr(config, "layer_types", None)
    if layer_types is None:
        return (window if config.model_type == "mistral" else None,) * layers
    if len(layer_types) < layers:
        raise CheckpointError(f"{where}: layer_types names {len(layer_types)} layers of {layers}")
    windows = {"full_attention": None, "sliding_attention": window}
    unknown = set(layer_types) - set(windows)
    if unknown:
        raise UnsupportedError(f"{where}: layer type {sorted(unknown)[0]!r} is not supported")
    return tuple(windows[kind] for kind in layer_types[:layers])


class _Heads(NamedTuple):
    """How many heads of each kind the rows of a tensor begin with."""

    query: int
    key: int


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of one layer, as the forward reads them.

    Attributes:
        input_norm: ``[d]``.
        qkv: ``[query_size + 2 key_size, d]``, Q, K and V joined.
        qkv_bias: as long, or None.
        query_norm: ``[D]`` or None.
        key_norm: likewise.
        output: ``[d, query_size]``.
        output_bias: ``[d]`` or None.
        post_norm: ``[d]``.
        gate_up: ``[2 intermediate, d]``, gate and up joined.
        gate_up_bias: as long, or None.
        down: ``[d, intermediate]``.
        down_bias: ``[d]`` or None.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Decoder:
    """A stock decoder-only model without LM head, over packed sequences.

    Attributes:
        shape: what its config says.
        embed_tokens: ``[vocab, d]``.
        norm: weight of the final RMSNorm, ``[d]``; the pooling applies it.
    """

    def __init__(
        self,
        shape: DecoderShape,
        embed_tokens: torch.Tensor,
        layers: list[DecoderLayer],
        norm: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        self.shape = shape
        self.embed_tokens = embed_tokens
        self.layers = layers
        self.norm = norm
        # Rounded to the computation's dtype, as the stock module rounds them.
        self._cos, self._sin = (table.to(norm.device, norm.dtype) for table in rope)

    @classmethod
    def load(
        cls,
        folder: Path,
        config: Any,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        adapter: LoraAdapter | None = None,
    ) -> Decoder:
        """Read a transformers checkpoint folder.

        Args:
            folder: of the decoder.
            config: its transformers config.
            max_length: most rows of a sequence: the rotary table's length.
            dtype: of the computation.
            device: where weights go.
            adapter: merged into the weights.

        Raises:
            CheckpointError: weights missing, extra or misshapen, by name.
            UnsupportedError: an architecture, activation or rope type not implemented.
        """
        shape = DecoderShape.from_transformers(config, str(folder))
        rope = rope_table(config, shape.head_dim, max_length, str(folder))
        reader = _DecoderReader(WeightFolder(folder), shape, dtype, device, adapter)
        embed_tokens = reader.take("embed_tokens.weight", shape.vocab_size, shape.hidden_size)
        layers = [reader.layer(index) for index in range(shape.num_layers)]
        norm = reader.take("norm.weight", shape.hidden_size)
        reader.finish()
        return cls(shape, embed_tokens, layers, norm, rope)

    def num_parameters(self) -> int:
        """Parameters without the embedding table: what each token is multiplied with."""
        weights = [w for layer in self.layers for w in vars(layer).values() if w is not None]
        return int(sum(w.numel() for w in weights)) + self.norm.numel()

    def embed(self, token_ids: torch.Tensor, contextual: torch.Tensor | None) -> torch.Tensor:
        """The input rows: token embeddings, and contextual tokens in their places.

        Args:
            token_ids: int32 ``[tokens]``; ``-1 - t`` stands for the contextual token of text t.
            contextual: ``[texts, d]``, or None where no id is negative.

        Returns:
            ``[tokens, d]``.
        """
        return prefix_concat(token_ids, self.embed_tokens, contextual)

    def forward(
        self,
        hidden_states: torch.Tensor,
        sequences: PackedSequences,
        causal: bool,
        attention: AttentionBackend,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run all layers; the final norm is left to the pooling.

        Args:
            hidden_states: input rows ``[tokens, d]``; overwritten.
            sequences: what they belong to.
            causal: the causal mask, or none.
            attention: the backend.
            rows: int32 ``[rows]``, as many of every sequence: the only ones wanted, so that the
                last layer computes queries, output projection and MLP for these alone. None: all.

        Returns:
            ``[rows, d]`` or ``[tokens, d]``, before the final norm.
        """
        max_seqlen = sequences.max_seqlen
        masks = [AttentionMask(causal, w).for_length(max_seqlen) for w in self.shape.windows]
        plans = {mask: attention.plan(sequences, mask) for mask in set(masks)}
        positions = sequences.position_ids
        pending: torch.Tensor | None = None  # what the next norm adds to the residual stream first
        for layer, mask in zip(self.layers, masks, strict=True):
            normed = self._add_norm(hidden_states, pending, layer.input_norm)
            if layer is self.layers[-1] and rows is not None:
                plan = attention.plan_rows(sequences.without_fillers(), rows, mask)
                computed = _rounded_rows(rows)
                attended = self._attend_rows(
                    layer, normed, sequences, computed, len(rows), plan, attention
                )
                hidden_states = hidden_states.index_select(0, computed)
            else:
                attended = self._attend(layer, normed, positions, plans[mask], attention)
            projected = F.linear(attended, layer.output, layer.output_bias)
            normed = self._add_norm(hidden_states, projected, layer.post_norm)
            pending = self._mlp(layer, normed)
        hidden_states = hidden_states if pending is None else hidden_states.add_(pending)
        return hidden_states if rows is None else hidden_states[: len(rows)]

    def _add_norm(
        self, hidden_states: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor:
        """Add x to the residual stream, in place, and normalise it."""
        return add_rms_norm(hidden_states, x, weight, eps=self.shape.rms_norm_eps)

    def _rotate(
        self, states: torch.Tensor, positions: torch.Tensor, layer: DecoderLayer, heads: _Heads
    ) -> None:
        """Normalise and rotate the query and key heads that rows begin with, in place."""
        qk_norm_rope_(
            states,
            positions,
            self._cos,
            self._sin,
            num_query_heads=heads.query,
            num_key_heads=heads.key,
            head_dim=self.shape.head_dim,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
            eps=self.shape.rms_norm_eps,
        )

    def _attend(
        self,
        layer: DecoderLayer,
        normed: torch.Tensor,
        positions: torch.Tensor,
        plan: Any,
        attention: AttentionBackend,
    ) -> torch.Tensor:
        shape = self.shape
        qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
        heads = _Heads(shape.num_attention_heads, shape.num_key_value_heads)
        self._rotate(qkv, positions, layer, heads)
        query, key, value = (
            part.unflatten(1, (-1, shape.head_dim))
            for part in qkv.split((shape.query_size, shape.key_size, shape.key_size), dim=1)
        )
        return attention.attend(query, key, value, plan, shape.head_dim**-0.5).flatten(1)

    def _attend_rows(
        self,
        layer: DecoderLayer,
        normed: torch.Tensor,
        sequences: PackedSequences,
        rows: torch.Tensor,
        wanted: int,
        plan: Any,
        attention: AttentionBackend,
    ) -> torch.Tensor:
        """Attend from the first ``wanted`` of the rows; the others are there for their number."""
        positions = sequences.position_ids
        tokens = sequences.without_fillers().num_tokens
        shape, size = self.shape, self.shape.query_size
        bias = layer.qkv_bias
        query = F.linear(
            normed.index_select(0, rows), layer.qkv[:size], None if bias is None else bias[:size]
        )
        key_value = F.linear(normed, layer.qkv[size:], None if bias is None else bias[size:])
        row_positions = positions.index_select(0, rows)
        self._rotate(query, row_positions, layer, _Heads(shape.num_attention_heads, 0))
        self._rotate(key_value, positions, layer, _Heads(0, shape.num_key_value_heads))
        query, key, value = (
            part.unflatten(1, (-1, shape.head_dim)) for part in (query, *key_value.chunk(2, dim=1))
        )
        attended = attention.attend_rows(
            query[:wanted], key[:tokens], value[:tokens], plan, shape.head_dim**-0.5
        )
        attended = attended.flatten(1)
        if len(rows) == wanted:
            return attended
        return F.pad(attended, (0, 0, 0, len(rows) - wanted))

    def _mlp(self, layer: DecoderLayer, normed: torch.Tensor) -> torch.Tensor:
        gate_up = F.linear(normed, layer.gate_up, layer.gate_up_bias)
        if self.shape.activation == "silu":
            product = silu_and_mul(gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=1)
            bias_act_(gate, None, activation=self.shape.activation)
            product = gate.mul_(up)
        return F.linear(product, layer.down, layer.down_bias)


def _rounded_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows, and on a CPU the first token's row again and again (see ``rounding``)."""
    if rows.device.type != "cpu":
        return rows
    return F.pad(rows, (0, rounded_pooled(len(rows)) - len(rows)))


class _DecoderReader:
    """Takes a decoder's weights by their base-model names, merged, cast and moved."""

    def __init__(
        self,
        weights: WeightFolder,
        shape: DecoderShape,
        dtype: torch.dtype,
        device: torch.device,
        adapter: LoraAdapter | None,
    ) -> None:
        self._weights = weights
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._adapter = adapter
        # A causal LM's checkpoint names the base model "model"; the base model's own does not.
        self._prefix = "model." if "model.embed_tokens.weight" in weights else ""

    def take(self, name: str, *shape: int) -> torch.Tensor:
        return self._read(name, *shape).to(self._device, self._dtype)

    def _read(self, name: str, *shape: int) -> torch.Tensor:
        weight = self._weights.take(self._prefix + name, shape)
        return weight if self._adapter is None else self._adapter.merge(name, weight)

    def _join(self, names: list[tuple[str, tuple[int, ...]]]) -> torch.Tensor:
        parts = [self._read(name, *shape).to(self._dtype) for name, shape in names]
        return torch.cat(parts).to(self._device)

    def layer(self, index: int) -> DecoderLayer:
        shape = self._shape
        d, wide = shape.hidden_size, shape.intermediate_size
        sizes = (shape.query_size, shape.key_size, shape.key_size)
        at = f"layers.{index}."
        attn, mlp = at + "self_attn.", at + "mlp."
        qkv = [(f"{attn}{n}_proj", size) for n, size in zip("qkv", sizes, strict=True)]
        gate_up = [(f"{mlp}{n}_proj", wide) for n in ("gate", "up")]

        def weights(parts: list[tuple[str, int]]) -> torch.Tensor:
            return self._join([(f"{n}.weight", (size, d)) for n, size in parts])

        def biases(parts: list[tuple[str, int]], there: bool) -> torch.Tensor | None:
            return self._join([(f"{n}.bias", (size,)) for n, size in parts]) if there else None

        def optional(name: str, size: int, there: bool) -> torch.Tensor | None:
            return self.take(name, size) if there else None

        return DecoderLayer(
            input_norm=self.take(f"{at}input_layernorm.weight", d),
            qkv=weights(qkv),
            qkv_bias=biases(qkv, shape.qkv_bias),
            query_norm=optional(f"{attn}q_norm.weight", shape.head_dim, shape.qk_norm),
            key_norm=optional(f"{attn}k_norm.weight", shape.head_dim, shape.qk_norm),
            output=self.take(f"{attn}o_proj.weight", d, shape.query_size),
            output_bias=optional(f"{attn}o_proj.bias", d, shape.output_bias),
            post_norm=self.take(f"{at}post_attention_layernorm.weight", d),
            gate_up=weights(gate_up),
            gate_up_bias=biases(gate_up, shape.mlp_bias),
            down=self.take(f"{mlp}down_proj.weight", d, wide),
            down_bias=optional(f"{mlp}down_proj.bias", d, shape.mlp_bias),
        )

    def finish(self) -> None:
        self._weights.refuse_extra(_UNUSED_WEIGHTS)
        if self._adapter is not None:
            self._adapter.refuse_unmerged()
