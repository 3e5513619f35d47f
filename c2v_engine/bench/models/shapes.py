"""The shapes of the models that are measured, and what of them is multiplied with every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from c2v_engine.errors import ConfigError

__all__ = ["MODELS", "DecoderSizes", "EncoderSizes", "ModelShape", "shape_named"]


@dataclass(frozen=True)
class EncoderSizes:
    """A BERT-style encoder; by default BERT-base, 110 M parameters with its embeddings.

    Attributes:
        vocab_size: rows of its embedding table.
        hidden_size: width k.
        intermediate_size: of its MLP.
        num_layers: layers.
        num_attention_heads: heads.
        num_positions: rows of its position table.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_attention_heads: int = 12
    num_positions: int = 512

    def config(self) -> Any:
        """The transformers config."""
        from transformers import BertConfig

        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.num_positions,
        )


@dataclass(frozen=True)
class DecoderSizes:
    """A decoder-only model of transformers.

    Attributes:
        architecture: ``llama``, ``mistral`` or ``qwen2`` (whose Q, K and V have biases).
        vocab_size: rows of its embedding table.
        hidden_size: width d.
        intermediate_size: of its MLP.
        num_layers: layers.
        num_attention_heads: query heads.
        num_key_value_heads: key heads.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: of its norms.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def key_size(self) -> int:
        """Width of the keys, and of the values."""
        return self.num_key_value_heads * self.head_dim

    def config(self) -> Any:
        """The transformers config; no sliding window, for none of the texts would reach it."""
        from transformers import LlamaConfig, MistralConfig, Qwen2Config

        kinds: dict[str, Any] = {
            "llama": LlamaConfig,
            "mistral": MistralConfig,
            "qwen2": Qwen2Config,
        }
        extra = {"mistral": {"sliding_window": None}}.get(self.architecture, {})
        return kinds[self.architecture](
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=4096,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            bos_token_id=0,
            eos_token_id=1,
            **extra,
        )


@dataclass(frozen=True)
class ModelShape:
    """A decoder with its encoder and projector.

    Attributes:
        name: in results.
        decoder: its sizes.
        encoder: its sizes.
        projector_size: width p of the projector's hidden layer.
    """

    name: str
    decoder: DecoderSizes
    encoder: EncoderSizes = EncoderSizes()
    projector_size: int = 2048


_MODELS = (
    ModelShape("mistral-7b", DecoderSizes("mistral", 32000, 4096, 14336, 32, 32, 8)),
    ModelShape("s-llama-1.3b", DecoderSizes("llama", 32000, 2048, 5504, 24, 16, 16)),
    ModelShape("qwen2.5-0.5b", DecoderSizes("qwen2", 151936, 896, 4864, 24, 14, 2, 1e6, 1e-6)),
    ModelShape("llama-130m", DecoderSizes("llama", 32768, 768, 3072, 12, 12, 4)),
    ModelShape(
        "tiny-mistral",
        DecoderSizes("mistral", 8192, 64, 160, 3, 4, 2),
        EncoderSizes(8192, 48, 96, 2, 4),
        64,
    ),
    ModelShape(
        "tiny-qwen2",
        DecoderSizes("qwen2", 8448, 48, 128, 2, 3, 1, 1e6, 1e-6),
        EncoderSizes(8192, 32, 64, 2, 2),
        32,
    ),
)
MODELS = {model.name: model for model in _MODELS}
"""By their names: three of the sizes in use, one for CPUs, two to try the benchmark."""


def shape_named(name: str) -> ModelShape:
    """A shape by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in MODELS:
        raise ConfigError(f"shape is {name!r}, expected one of {', '.join(MODELS)}")
    return MODELS[name]
