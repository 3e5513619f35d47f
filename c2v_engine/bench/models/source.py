"""Where a model that is measured comes from: its checkpoint, opened by the engine and by others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from c2v_engine.bench.providers.base import UnusableError
from c2v_engine.model.checkpoint import CheckpointDescription, load_transformers_config
from c2v_engine.model.loading import WeightSource
from c2v_engine.model.projector import projector_shapes
from c2v_engine.model.weights import WeightFolder
from c2v_engine.reference import Causal2VecReference

__all__ = ["ModelSource", "Part", "StoredCheckpoint", "quiet_transformers"]

Part = Literal["decoder", "encoder", "projector"]


class ModelSource(ABC):
    """A checkpoint directory with configs and tokenizers, and whoever holds its weights.

    Attributes:
        name: in results.
        directory: of the checkpoint.
        device: where it is opened.
    """

    name: str
    directory: Path
    device: torch.device

    @cached_property
    @abstractmethod
    def description(self) -> CheckpointDescription:
        """What the directory says of itself."""

    @abstractmethod
    def open_weights(self, folder: Path, filename: str | None = None) -> WeightSource:
        """The weights of a folder of the checkpoint, or of one file in it."""

    @abstractmethod
    def module(self, part: Part, dtype: torch.dtype) -> Any:
        """A stock module of the checkpoint on its device, for inference."""

    @property
    def stored(self) -> Path:
        """The directory, where the weights lie in it too, as other libraries need them.

        Raises:
            UnusableError: they do not.
        """
        raise UnusableError(f"the weights of {self.name} are made on the device, not stored")

    def shapes(self, part: Part) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a part's tensors, in transformers' names; none of what is not there.

        An encoder's pooler, which no checkpoint needs, is left out.
        """
        config, encoder = self.description.config, self.description.encoder_config
        if part != "decoder" and encoder is None:
            return {}
        if part == "projector":
            assert config.projector is not None
            assert encoder is not None
            sizes = encoder.hidden_size, self.description.decoder_shape.hidden_size
            return projector_shapes(config.projector, *sizes)
        return {
            name: tuple(parameter.shape)
            for name, parameter in self.on_meta(part).named_parameters()
        }

    def on_meta(self, part: Part) -> Any:
        """The stock module of ``decoder`` or ``encoder`` (without pooler), without weights."""
        from transformers import AutoModel

        config = self.description.config
        section = config.decoder if part == "decoder" else config.encoder
        assert section is not None
        options: dict[str, Any] = {"attn_implementation": "sdpa"}
        if part == "encoder":
            options["add_pooling_layer"] = False
        with torch.device("meta"):
            return AutoModel.from_config(
                load_transformers_config(self.directory / section.path), **options
            )

    def multiplied_parameters(self, part: Part) -> int:
        """Parameters of a part that every token of it is multiplied with: all but embeddings."""
        return sum(
            math.prod(shape) for name, shape in self.shapes(part).items() if "embed" not in name
        )


class StoredCheckpoint(ModelSource):
    """A checkpoint directory as a user has it.

    Args:
        directory: holds ``config.json``.
        device: where it is opened.
        name: in results; by default the directory's.
    """

    def __init__(self, directory: Path, device: torch.device, name: str = "") -> None:
        self.directory = directory
        self.device = device
        self.name = name or directory.name

    @cached_property
    def description(self) -> CheckpointDescription:
        """See the base class."""
        return CheckpointDescription.read(self.directory)

    @property
    def stored(self) -> Path:
        """See the base class."""
        return self.directory

    def open_weights(self, folder: Path, filename: str | None = None) -> WeightSource:
        """See the base class."""
        return WeightFolder(folder, filename)

    def module(self, part: Part, dtype: torch.dtype) -> Any:
        """See the base class; the adapter is merged into the decoder."""
        return getattr(self.reference(dtype), part)

    def reference(self, dtype: torch.dtype) -> Causal2VecReference:
        """The stock modules together."""
        with quiet_transformers():
            return Causal2VecReference.from_pretrained(
                self.directory, dtype, str(self.device), attn_implementation="sdpa"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Have transformers print neither bars nor that an encoder's pooler, unused, is not there."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
