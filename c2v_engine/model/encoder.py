"""The encoder: the BERT family as one packed, bidirectional forward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.kernels.add_layer_norm import add_layer_norm
from c2v_engine.kernels.embed_layer_norm import embed_layer_norm
from c2v_engine.model.activations import get_activation
from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.linear import Linear, by_blocks
from c2v_engine.model.loading import Placement, WeightLoader, WeightSource
from c2v_engine.model.packed_batch import PackedSequences
from c2v_engine.model.rounding import Rounding
from c2v_engine.model.stages import stage

# RoBERTa and its kin count positions from the padding token's id on.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
_SUPPORTED = ("bert", *_OFFSET_POSITIONS)
_UNUSED_PREFIXES = ("pooler.", "cls.", "lm_head.", "classifier.")


@dataclass(frozen=True)
class EncoderShape:
    """What an encoder's transformers config says about its forward.

    Attributes:
        vocab_size: rows of the embedding table.
        hidden_size: width k.
        intermediate_size: width of the MLP.
        num_attention_heads: heads.
        num_layers: layers.
        layer_norm_eps: epsilon of every LayerNorm.
        activation: of the MLP.
        num_positions: rows of the position table.
        position_offset: position id of a sequence's first token.
        num_token_types: rows of the token type table; every token is of type 0.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_layers: int
    layer_norm_eps: float
    activation: str
    num_positions: int
    position_offset: int
    num_token_types: int

    @property
    def head_dim(self) -> int:
        """Size D of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the position table allows."""
        return self.num_positions - self.position_offset

    @classmethod
    def from_transformers(cls, config: Any, where: str) -> EncoderShape:
        """Read a transformers config.

        Raises:
            UnsupportedError: an architecture, position type or activation not implemented.
            CheckpointError: heads that do not divide the width.
        """
        kind = config.model_type
        if kind not in _SUPPORTED:
            raise UnsupportedError(
                f"{where}: encoder architecture {kind!r} is not supported; "
                f"known are {', '.join(_SUPPORTED)}"
            )
        positions = getattr(config, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise UnsupportedError(f"{where}: position_embedding_type {positions!r} not supported")
        if getattr(config, "is_decoder", False):
            raise UnsupportedError(f"{where}: is_decoder encoders are not supported")
        if getattr(config, "quantization_config", None) is not None:
            raise UnsupportedError(f"{where}: quantised checkpoints are not supported")
        if config.hidden_size % config.num_attention_heads:
            raise CheckpointError(
                f"{where}: num_attention_heads is {config.num_attention_heads}, "
                f"which does not divide hidden_size {config.hidden_size}"
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_layers=config.num_hidden_layers,
            layer_norm_eps=config.layer_norm_eps,
            activation=get_activation(config.hidden_act, where),
            num_positions=config.max_position_embeddings,
            position_offset=config.pad_token_id + 1 if kind in _OFFSET_POSITIONS else 0,
            num_token_types=config.type_vocab_size,
        )


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm of a sum."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The normalised rows of ``x + residual``, each ``[rows, k]``."""
        return add_layer_norm(x, residual, self.weight, self.bias, eps=self.eps)


@dataclass(frozen=True)
class EncoderLayer:
    """Weights of one layer; ``qkv`` joins query, key and value, ``intermediate`` activates."""

    qkv: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    intermediate: Linear
    output: Linear
    output_norm: LayerNorm

    def mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        """The MLP of ``[rows, k]``, before its norm."""
        return self.output(self.intermediate(hidden))

    @property
    def num_parameters(self) -> int:
        """Of all its parts."""
        linears = (self.qkv, self.attention_output, self.intermediate, self.output)
        norms = (self.attention_norm, self.output_norm)
        return sum(part.num_parameters for part in linears) + sum(
            norm.weight.numel() + norm.bias.numel() for norm in norms
        )


class Encoder:
    """A stock BERT-style encoder without pooler, over packed sequences.

    Attributes:
        shape: what its config says.
        word_embeddings: ``[vocab, k]``.
        position_embeddings: ``[positions, k]``, from a sequence's first position on.
    """

    def __init__(
        self,
        shape: EncoderShape,
        word_embeddings: torch.Tensor,
        position_embeddings: torch.Tensor,
        token_type: torch.Tensor,
        norm: LayerNorm,
        layers: list[EncoderLayer],
        rounding: Rounding,
    ) -> None:
        self.shape = shape
        self.word_embeddings = word_embeddings
        self.position_embeddings = position_embeddings
        self._token_type = token_type
        self._norm = norm
        self.layers = layers
        self._block_rows = rounding.block_rows

    @classmethod
    def load(cls, source: WeightSource, config: Any, placement: Placement, where: str) -> Encoder:
        """Take a transformers checkpoint's weights.

        Args:
            source: of the weights.
            config: the encoder's transformers config.
            placement: where it computes.
            where: the folder, for messages.

        Raises:
            CheckpointError: weights missing, extra or misshapen, by name.
            UnsupportedError: an architecture or activation that is not implemented.
        """
        shape = EncoderShape.from_transformers(config, where)
        reader = _EncoderReader(source, shape, placement)
        k = shape.hidden_size
        words = reader.take("embeddings.word_embeddings.weight", shape.vocab_size, k)
        positions = reader.take("embeddings.position_embeddings.weight", shape.num_positions, k)
        types = reader.take("embeddings.token_type_embeddings.weight", shape.num_token_types, k)
        norm = reader.norm("embeddings.LayerNorm")
        layers = [reader.layer(index) for index in range(shape.num_layers)]
        reader.finish()
        positions = positions[shape.position_offset :]
        return cls(shape, words, positions, types[0], norm, layers, placement.rounding)

    def num_parameters(self) -> int:
        """Parameters without the embedding tables: what each token is multiplied with."""
        return sum(layer.num_parameters for layer in self.layers)

    def forward(self, sequences: PackedSequences, attention: AttentionBackend) -> torch.Tensor:
        """Token states ``[tokens, k]`` of packed sequences."""
        with stage("encoder.embed"):
            hidden = embed_layer_norm(
                sequences.token_ids,
                sequences.position_ids,
                self.word_embeddings,
                self.position_embeddings,
                self._token_type,
                self._norm.weight,
                self._norm.bias,
                eps=self._norm.eps,
            )
        plan = attention.plan(sequences, AttentionMask(causal=False))
        head_dim = self.shape.head_dim
        for layer in self.layers:
            with stage("encoder.qkv"):
                qkv = by_blocks(layer.qkv, hidden, self._block_rows)
            with stage("encoder.attention"):
                query, key, value = (
                    part.unflatten(1, (-1, head_dim)) for part in qkv.chunk(3, dim=1)
                )
                attended = attention.attend(query, key, value, plan, head_dim**-0.5).flatten(1)
            with stage("encoder.output"):
                projected = by_blocks(layer.attention_output, attended, self._block_rows)
                hidden = layer.attention_norm(projected, hidden)
            with stage("encoder.mlp"):
                mixed = by_blocks(layer.mlp, hidden, self._block_rows)
                hidden = layer.output_norm(mixed, hidden)
        return hidden


class _EncoderReader:
    """Takes an encoder's weights by their base-model names."""

    def __init__(self, source: WeightSource, shape: EncoderShape, placement: Placement) -> None:
        self._source = source
        self._shape = shape
        word_embeddings = "embeddings.word_embeddings.weight"
        prefixes = [p for p in ("", "bert.", "roberta.") if p + word_embeddings in source]
        self._prefix = prefixes[0] if prefixes else ""
        self._loader = WeightLoader(source, placement, self._prefix)
        self.take = self._loader.tensor

    def norm(self, name: str) -> LayerNorm:
        k = self._shape.hidden_size
        # Checkpoints converted from the original release call them gamma and beta.
        legacy = f"{self._prefix}{name}.gamma" in self._source
        weight, bias = ("gamma", "beta") if legacy else ("weight", "bias")
        return LayerNorm(
            self.take(f"{name}.{weight}", k),
            self.take(f"{name}.{bias}", k),
            self._shape.layer_norm_eps,
        )

    def layer(self, index: int) -> EncoderLayer:
        k, wide = self._shape.hidden_size, self._shape.intermediate_size
        at = f"encoder.layer.{index}."
        qkv = [(f"{at}attention.self.{name}", k) for name in ("query", "key", "value")]
        linear = partial(self._loader.linear, bias=True)
        return EncoderLayer(
            qkv=linear(qkv, k),
            attention_output=linear([(f"{at}attention.output.dense", k)], k),
            attention_norm=self.norm(f"{at}attention.output.LayerNorm"),
            intermediate=linear(
                [(f"{at}intermediate.dense", wide)], k, activation=self._shape.activation
            ),
            output=linear([(f"{at}output.dense", k)], wide),
            output_norm=self.norm(f"{at}output.LayerNorm"),
        )

    def finish(self) -> None:
        unused = [n for n in self._source.names if n.startswith(_UNUSED_PREFIXES)]
        unused += [
            n
            for n in self._source.names
            if n.removeprefix(self._prefix).startswith(
                (*_UNUSED_PREFIXES, "embeddings.position_ids")
            )
        ]
        self._source.refuse_extra(unused)


def check_encoder_length(shape: EncoderShape, max_length: int, where: str) -> None:
    """Refuse an ``encoder.max_length`` beyond the position table.

    Raises:
        CheckpointError: with both lengths.
    """
    if max_length > shape.max_tokens:
        raise CheckpointError(
            f"{where}: encoder.max_length is {max_length}, "
            f"the encoder has positions for {shape.max_tokens} tokens"
        )
