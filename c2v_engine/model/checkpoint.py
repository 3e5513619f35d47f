"""Opening a Causal2Vec checkpoint directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from c2v_engine.errors import CheckpointError, ConfigError, UnsupportedError
from c2v_engine.model.arithmetic import make_arithmetic
from c2v_engine.model.attention.base import AttentionBackend
from c2v_engine.model.attention.select import select_attention
from c2v_engine.model.causal2vec import ContextModel, PackedCausal2Vec
from c2v_engine.model.config import CONFIG_NAME, Causal2VecConfig
from c2v_engine.model.decoder_loading import load_decoder
from c2v_engine.model.decoder_shape import DECODER_KINDS, DecoderShape
from c2v_engine.model.device import made_current, resolve_device, resolve_dtype
from c2v_engine.model.encoder import Encoder, check_encoder_length
from c2v_engine.model.loading import Placement, WeightSource
from c2v_engine.model.lora import LoraAdapter
from c2v_engine.model.modules_json import MODULES_NAME, names_this_engine
from c2v_engine.model.projector import PROJECTOR_NAME, Projector
from c2v_engine.model.summary import SUMMARY_NAME, load_summary
from c2v_engine.model.weights import WeightFolder


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint directory says of itself, without its weights.

    Attributes:
        directory: where it lies.
        config: its ``config.json``.
        decoder_config: the decoder's transformers config.
        encoder_config: the encoder's, None without one.
        decoder_shape: what the decoder's config says about its forward.
        stored_dtype: of the decoder's weights on disk.
    """

    directory: Path
    config: Causal2VecConfig
    decoder_config: Any
    encoder_config: Any | None
    decoder_shape: DecoderShape
    stored_dtype: torch.dtype

    @property
    def decoder_folder(self) -> Path:
        """Of the decoder's transformers checkpoint."""
        return self.directory / self.config.decoder.path

    @classmethod
    def read(cls, directory: str | Path) -> CheckpointDescription:
        """Read a checkpoint directory.

        Raises:
            ConfigError: ``config.json`` is missing or wrong.
            CheckpointError: there is no such directory, or a folder in it is not as it must be.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory")
        try:
            config = Causal2VecConfig.load(directory)
        except ConfigError as error:
            raise ConfigError(f"{error}{_conversion_hint(directory)}") from None
        folder = directory / config.decoder.path
        decoder_config = load_transformers_config(folder)
        encoder_config = None
        if config.encoder is not None:
            encoder_config = load_transformers_config(directory / config.encoder.path)
        shape = DecoderShape.from_transformers(decoder_config, str(folder))
        stored = _stored_dtype(folder)
        return cls(directory, config, decoder_config, encoder_config, shape, stored)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: what it says, and its model on a device.

    Attributes:
        description: what it says of itself.
        model: the packed forward.
        placement: where it computes.
    """

    description: CheckpointDescription
    model: PackedCausal2Vec
    placement: Placement


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is opened.

    Attributes:
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``, or ``float8`` (CUDA) or ``int8``
            (CPU) for the decoder's linear layers, around which all is bfloat16.
        attention: ``auto`` or the name of a backend.
        deterministic: whether a text's embedding is the same to the bit alone and in any batch.
    """

    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    deterministic: bool = False

    def placement(self, stored_dtype: torch.dtype) -> Placement:
        """Where that puts a model whose weights are stored in a dtype.

        Raises:
            BackendError: a device or dtype that can not be used here.
        """
        device = resolve_device(self.device)
        if str(device) == "cuda":
            # Named for good: another may be the current one when texts come.
            device = torch.device("cuda", torch.cuda.current_device())
        with made_current(device):
            dtype, weights = resolve_dtype(self.dtype, device, stored_dtype)
        return Placement(device, dtype, weights, self.deterministic)


class WeightOpener(Protocol):
    """Opens the weights of a folder, or of one file in it, as ``WeightFolder`` does."""

    def __call__(self, folder: Path, filename: str | None = None) -> WeightSource:
        """The weights of ``model.safetensors`` or its shards, or of another file."""
        ...


def load_checkpoint(directory: str | Path, options: LoadOptions | None = None) -> Checkpoint:
    """Open a checkpoint directory.

    Args:
        directory: holds ``config.json``.
        options: how; None for the defaults.

    Raises:
        ConfigError: ``config.json`` is missing or wrong.
        CheckpointError: weights or folders do not fit it.
        BackendError: a device, dtype or backend that can not be used here.
    """
    options = LoadOptions() if options is None else options
    return load_described(CheckpointDescription.read(directory), options)


def load_described(
    description: CheckpointDescription,
    options: LoadOptions,
    open_weights: WeightOpener = WeightFolder,
) -> Checkpoint:
    """Build the model of a checkpoint whose configs were read.

    Args:
        description: what it says of itself.
        options: how it is opened.
        open_weights: gives the weights of its folders; by default as they lie there.

    Raises:
        CheckpointError: weights or folders do not fit the description.
        BackendError: a device, dtype or backend that can not be used here.
    """
    placement = options.placement(description.stored_dtype)
    with made_current(placement.device):
        model = _load_model(description, placement, options, open_weights)
    if placement.device.type == "cuda":
        torch.cuda.synchronize(placement.device)  # other streams will read the weights
    return Checkpoint(description, model, placement)


def _load_model(
    description: CheckpointDescription,
    placement: Placement,
    options: LoadOptions,
    open_weights: WeightOpener,
) -> PackedCausal2Vec:
    config, folder = description.config, description.decoder_folder
    adapter = None
    if config.decoder.adapter is not None:
        adapter = LoraAdapter(description.directory / config.decoder.adapter)
    decoder = load_decoder(
        open_weights(folder),
        description.decoder_config,
        config.max_length,
        placement,
        make_arithmetic(placement),
        str(folder),
        adapter,
    )
    shape = decoder.shape
    group = shape.num_attention_heads // shape.num_key_value_heads
    backend = _attention(options, placement, shape.head_dim, group)
    context = None
    if config.encoder is not None:
        context = load_context(description, placement, options, open_weights)
    summary = None
    if config.summary_tokens:
        source = open_weights(description.directory, SUMMARY_NAME)
        summary = load_summary(source, config.summary_tokens, shape.hidden_size, placement)
    return PackedCausal2Vec(config, decoder, backend, context, placement.rounding, summary)


def _attention(
    options: LoadOptions, placement: Placement, head_dim: int, group: int
) -> AttentionBackend:
    return select_attention(
        options.attention,
        placement.device,
        placement.dtype,
        head_dim,
        group,
        deterministic=placement.deterministic,
    )


def load_context(
    description: CheckpointDescription,
    placement: Placement,
    options: LoadOptions,
    open_weights: WeightOpener = WeightFolder,
) -> ContextModel:
    """Build what makes the contextual token, of a checkpoint that has an encoder.

    Args:
        description: what the checkpoint says of itself.
        placement: where it computes.
        options: how it is opened.
        open_weights: gives its weights; by default as they lie there.

    Raises:
        CheckpointError: weights or folders do not fit the description.
        BackendError: an attention backend that can not be used here.
    """
    config, directory = description.config, description.directory
    assert config.encoder is not None
    assert config.projector is not None
    folder = directory / config.encoder.path
    encoder = Encoder.load(open_weights(folder), description.encoder_config, placement, str(folder))
    check_encoder_length(encoder.shape, config.encoder.max_length, str(folder))
    projector = Projector.load(
        open_weights(directory, PROJECTOR_NAME),
        config.projector,
        encoder.shape.hidden_size,
        description.decoder_shape.hidden_size,
        placement,
    )
    backend = _attention(options, placement, encoder.shape.head_dim, group=1)
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
    except (OSError, ValueError, AttributeError, RecursionError) as error:
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


def _conversion_hint(directory: Path) -> str:
    """What to do with a folder that is another library's model, for the end of an error."""
    if (directory / MODULES_NAME).is_file() and not names_this_engine(directory):
        return "; it is a model of sentence-transformers, of which c2v convert makes a checkpoint"
    try:
        kind = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    if kind not in DECODER_KINDS:
        return ""
    return f"; it is a decoder ({kind}), of which c2v convert --pooling makes a checkpoint"


def _stored_dtype(folder: Path) -> torch.dtype:
    weights = WeightFolder(folder)
    name = next(iter(sorted(n for n in weights.names if n.endswith("_proj.weight"))), None)
    return torch.float32 if name is None else weights.stored_dtype(name)
