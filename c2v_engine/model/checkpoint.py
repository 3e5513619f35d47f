"""Opening a Causal2Vec checkpoint directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.model.attention.select import select_attention
from c2v_engine.model.causal2vec import ContextModel, PackedCausal2Vec
from c2v_engine.model.config import CONFIG_NAME, Causal2VecConfig
from c2v_engine.model.decoder import Decoder
from c2v_engine.model.device import resolve_device, resolve_dtype
from c2v_engine.model.encoder import Encoder, check_encoder_length
from c2v_engine.model.lora import LoraAdapter
from c2v_engine.model.projector import Projector
from c2v_engine.model.weights import WeightFolder


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its model on a device, and what the tokenizers need.

    Attributes:
        directory: where it lies.
        config: its ``config.json``.
        decoder_config: the decoder's transformers config.
        encoder_config: the encoder's, None without one.
        model: the packed forward.
        device: of the model.
        dtype: of the computation.
        stored_dtype: of the decoder's weights on disk.
    """

    directory: Path
    config: Causal2VecConfig
    decoder_config: Any
    encoder_config: Any | None
    model: PackedCausal2Vec
    device: torch.device
    dtype: torch.dtype
    stored_dtype: torch.dtype


def load_checkpoint(
    directory: str | Path, device: str = "auto", dtype: str = "auto", attention: str = "auto"
) -> Checkpoint:
    """Open a checkpoint directory.

    Args:
        directory: holds ``config.json``.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        attention: ``auto`` or the name of a backend.

    Raises:
        ConfigError: ``config.json`` is missing or wrong.
        CheckpointError: weights or folders do not fit it.
        BackendError: a device, dtype or backend that can not be used here.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    config = Causal2VecConfig.load(directory)
    folder = directory / config.decoder.path
    decoder_config = load_transformers_config(folder)
    stored_dtype = _stored_dtype(folder)
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device, stored_dtype)
    adapter = None
    if config.decoder.adapter is not None:
        adapter = LoraAdapter(directory / config.decoder.adapter)
    decoder = Decoder.load(
        folder, decoder_config, config.max_length, torch_dtype, torch_device, adapter
    )
    shape = decoder.shape
    group = shape.num_attention_heads // shape.num_key_value_heads
    backend = select_attention(attention, torch_device, torch_dtype, shape.head_dim, group)
    context, encoder_config = None, None
    if config.encoder is not None:
        encoder_config = load_transformers_config(directory / config.encoder.path)
        context = _load_context(
            directory,
            config,
            encoder_config,
            shape.hidden_size,
            torch_dtype,
            torch_device,
            attention,
        )
    model = PackedCausal2Vec(config, decoder, backend, context)
    return Checkpoint(
        directory,
        config,
        decoder_config,
        encoder_config,
        model,
        torch_device,
        torch_dtype,
        stored_dtype,
    )


def _load_context(
    directory: Path,
    config: Causal2VecConfig,
    encoder_config: Any,
    decoder_size: int,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
) -> ContextModel:
    assert config.encoder is not None
    assert config.projector is not None
    folder = directory / config.encoder.path
    encoder = Encoder.load(folder, encoder_config, dtype, device)
    check_encoder_length(encoder.shape, config.encoder.max_length, str(folder))
    projector = Projector.load(
        directory, config.projector, encoder.shape.hidden_size, decoder_size, dtype, device
    )
    backend = select_attention(attention, device, dtype, encoder.shape.head_dim, group=1)
    return ContextModel(encoder, backend, projector)


def load_transformers_config(folder: Path) -> Any:
    """The transformers config of an encoder or decoder folder.

    Raises:
        CheckpointError: it is missing or damaged.
        UnsupportedError: transformers does not know the architecture.
    """
    path = folder / CONFIG_NAME
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a transformers config: {error}") from None
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        raise UnsupportedError(f"{path}: architecture {kind!r} is not known to transformers")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a config it dislikes
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: transformers refuses it: {reason}") from None


def _stored_dtype(folder: Path) -> torch.dtype:
    weights = WeightFolder(folder)
    name = next(iter(sorted(n for n in weights.names if n.endswith("_proj.weight"))), None)
    return torch.float32 if name is None else weights.stored_dtype(name)
