"""What a decoder's transformers config says about its forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.model.activations import get_activation

DECODER_KINDS = ("llama", "mistral", "qwen2", "qwen3")


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
        if kind not in DECODER_KINDS:
            raise UnsupportedError(
                f"{where}: decoder architecture {kind!r} is not supported; "
                f"known are {', '.join(DECODER_KINDS)}"
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
