"""The encoder: the BERT family as one packed, bidirectional forward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.kernels.add_layer_norm import add_layer_norm
from c2v_engine.kernels.bias_act import bias_act_
from c2v_engine.kernels.embed_layer_norm import embed_layer_norm
from c2v_engine.model.activations import get_activation
from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.packed_batch import PackedSequences
from c2v_engine.model.weights import WeightFolder

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
class Linear:
    """A weight ``[out, in]`` and a bias ``[out]``."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b`` of ``[rows, in]``."""
        return F.linear(x, self.weight, self.bias)


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
    """Weights of one layer; ``qkv`` joins query, key and value."""

    qkv: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    intermediate: Linear
    output: Linear
    output_norm: LayerNorm


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
    ) -> None:
        self.shape = shape
        self.word_embeddings = word_embeddings
        self.position_embeddings = position_embeddings
        self._token_type = token_type
        self._norm = norm
        self.layers = layers

    @classmethod
    def load(cls, folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Encoder:
        """Read a transformers checkpoint folder.

        Raises:
            CheckpointError: weights missing, extra or misshapen, by name.
            UnsupportedError: an architecture or activation that is not implemented.
        """
        shape = EncoderShape.from_transformers(config, str(folder))
        reader = _EncoderReader(WeightFolder(folder), shape, dtype, device)
        k = shape.hidden_size
        words = reader.take("embeddings.word_embeddings.weight", shape.vocab_size, k)
        positions = reader.take("embeddings.position_embeddings.weight", shape.num_positions, k)
        types = reader.take("embeddings.token_type_embeddings.weight", shape.num_token_types, k)
        norm = reader.norm("embeddings.LayerNorm")
        layers = [reader.layer(index) for index in range(shape.num_layers)]
        reader.finish()
        return cls(shape, words, positions[shape.position_offset :], types[0], norm, layers)

    def num_parameters(self) -> int:
        """Parameters without the embedding tables: what each token is multiplied with."""
        total = 0
        for layer in self.layers:
            for part in vars(layer).values():
                total += part.weight.numel() + part.bias.numel()
        return total

    def forward(self, sequences: PackedSequences, attention: AttentionBackend) -> torch.Tensor:
        """Token states ``[tokens, k]`` of packed sequences."""
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
            query, key, value = (
                part.unflatten(1, (-1, head_dim)) for part in layer.qkv(hidden).chunk(3, dim=1)
            )
            attended = attention.attend(query, key, value, plan, head_dim**-0.5).flatten(1)
            hidden = layer.attention_norm(layer.attention_output(attended), hidden)
            wide = layer.intermediate(hidden)
            bias_act_(wide, None, activation=self.shape.activation)
            hidden = layer.output_norm(layer.output(wide), hidden)
        return hidden


class _EncoderReader:
    """Takes an encoder's weights by their base-model names, cast and moved."""

    def __init__(
        self, weights: WeightFolder, shape: EncoderShape, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._weights = weights
        self._shape = shape
        self._dtype = dtype
        self._device = device
        word_embeddings = "embeddings.word_embeddings.weight"
        prefixes = [p for p in ("", "bert.", "roberta.") if p + word_embeddings in weights]
        self._prefix = prefixes[0] if prefixes else ""

    def take(self, name: str, *shape: int) -> torch.Tensor:
        return self._weights.take(self._prefix + name, shape).to(self._device, self._dtype)

    def _linear(self, name: str, out: int, size: int) -> Linear:
        return Linear(self.take(f"{name}.weight", out, size), self.take(f"{name}.bias", out))

    def norm(self, name: str) -> LayerNorm:
        k = self._shape.hidden_size
        # Checkpoints converted from the original release call them gamma and beta.
        legacy = f"{self._prefix}{name}.gamma" in self._weights
        weight, bias = ("gamma", "beta") if legacy else ("weight", "bias")
        return LayerNorm(
            self.take(f"{name}.{weight}", k),
            self.take(f"{name}.{bias}", k),
            self._shape.layer_norm_eps,
        )

    def layer(self, index: int) -> EncoderLayer:
        k, wide = self._shape.hidden_size, self._shape.intermediate_size
        at = f"encoder.layer.{index}."
        parts = [self._linear(f"{at}attention.self.{n}", k, k) for n in ("query", "key", "value")]
        return EncoderLayer(
            qkv=Linear(
                torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
            ),
            attention_output=self._linear(f"{at}attention.output.dense", k, k),
            attention_norm=self.norm(f"{at}attention.output.LayerNorm"),
            intermediate=self._linear(f"{at}intermediate.dense", wide, k),
            output=self._linear(f"{at}output.dense", k, wide),
            output_norm=self.norm(f"{at}output.LayerNorm"),
        )

    def finish(self) -> None:
        unused = [n for n in self._weights.names if n.startswith(_UNUSED_PREFIXES)]
        unused += [
            n
            for n in self._weights.names
            if n.removeprefix(self._prefix).startswith(
                (*_UNUSED_PREFIXES, "embeddings.position_ids")
            )
        ]
        self._weights.refuse_extra(unused)


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
