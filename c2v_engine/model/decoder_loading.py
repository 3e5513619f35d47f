"""Taking a decoder's weights by the names that transformers gives them."""

from __future__ import annotations

from typing import Any

import torch

from c2v_engine.model.arithmetic import Arithmetic
from c2v_engine.model.decoder import Decoder, DecoderLayer
from c2v_engine.model.decoder_shape import DecoderShape
from c2v_engine.model.linear import Linear
from c2v_engine.model.loading import Part, Placement, WeightLoader, WeightSource
from c2v_engine.model.lora import LoraAdapter
from c2v_engine.model.rope import rope_table

# Tensors that checkpoints of these architectures may hold and the forward does not need.
_UNUSED_WEIGHTS = ("lm_head.weight", "rotary_emb.inv_freq")


def load_decoder(
    source: WeightSource,
    config: Any,
    max_length: int,
    placement: Placement,
    arithmetic: Arithmetic,
    where: str,
    adapter: LoraAdapter | None = None,
) -> Decoder:
    """Take a transformers checkpoint's weights.

    Args:
        source: of the weights.
        config: the decoder's transformers config.
        max_length: most rows of a sequence: the rotary table's length.
        placement: where it computes.
        arithmetic: of its linear layers.
        where: the folder, for messages.
        adapter: merged into the weights.

    Raises:
        CheckpointError: weights missing, extra or misshapen, by name.
        UnsupportedError: an architecture, activation or rope type not implemented.
    """
    shape = DecoderShape.from_transformers(config, where)
    rope = rope_table(config, shape.head_dim, max_length, where)
    # A causal LM's checkpoint names the base model "model"; the base model's own does not.
    prefix = "model." if "model.embed_tokens.weight" in source else ""
    loader = WeightLoader(source, placement, prefix, adapter, arithmetic.linear)
    reader = _LayerReader(loader, shape)
    embed_tokens = loader.tensor("embed_tokens.weight", shape.vocab_size, shape.hidden_size)
    layers = [reader.layer(index) for index in range(shape.num_layers)]
    norm = loader.tensor("norm.weight", shape.hidden_size)
    source.refuse_extra(_UNUSED_WEIGHTS)
    if adapter is not None:
        adapter.refuse_unmerged()
    rounding = placement.rounding
    return Decoder(shape, embed_tokens, layers, norm, rope, arithmetic, rounding)


class _LayerReader:
    """Takes the weights of one layer after the other."""

    def __init__(self, loader: WeightLoader, shape: DecoderShape) -> None:
        self._loader = loader
        self._shape = shape

    def layer(self, index: int) -> DecoderLayer:
        shape, at = self._shape, f"layers.{index}."
        d, wide = shape.hidden_size, shape.intermediate_size
        mlp = f"{at}mlp."
        linear, tensor = self._loader.linear, self._loader.tensor
        return DecoderLayer(
            input_norm=tensor(f"{at}input_layernorm.weight", d),
            qkv=self._qkv(f"{at}self_attn.", last=index == shape.num_layers - 1),
            query_norm=self._head_norm(f"{at}self_attn.q_norm.weight"),
            key_norm=self._head_norm(f"{at}self_attn.k_norm.weight"),
            output=linear([(f"{at}self_attn.o_proj", d)], shape.query_size, bias=shape.output_bias),
            post_norm=tensor(f"{at}post_attention_layernorm.weight", d),
            gate_up=linear(
                [(f"{mlp}gate_proj", wide), (f"{mlp}up_proj", wide)], d, bias=shape.mlp_bias
            ),
            down=linear([(f"{mlp}down_proj", d)], wide, bias=shape.mlp_bias),
        )

    def _qkv(self, at: str, *, last: bool) -> tuple[Linear, ...]:
        shape = self._shape
        query: Part = (f"{at}q_proj", shape.query_size)
        key_value: list[Part] = [(f"{at}{name}_proj", shape.key_size) for name in "kv"]
        joined = [[query], key_value] if last else [[query, *key_value]]
        return tuple(
            self._loader.linear(parts, shape.hidden_size, bias=shape.qkv_bias) for parts in joined
        )

    def _head_norm(self, name: str) -> torch.Tensor | None:
        return self._loader.tensor(name, self._shape.head_dim) if self._shape.qk_norm else None
