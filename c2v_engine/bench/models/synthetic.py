"""Checkpoints without weights on disk: configs and tokenizers there, random weights on the device.

The weights of a name are the same wherever they are asked for, so that the engine and a stock model
hold the same model although neither reads a file.
"""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from c2v_engine.bench.models.shapes import ModelShape
from c2v_engine.bench.models.source import ModelSource, Part
from c2v_engine.engine import default_model_path
from c2v_engine.errors import CheckpointError
from c2v_engine.model.checkpoint import CheckpointDescription, load_transformers_config
from c2v_engine.model.config import Causal2VecConfig, EncoderConfig, ProjectorConfig
from c2v_engine.model.decoder_shape import DecoderShape
from c2v_engine.model.projector import PROJECTOR_NAME

__all__ = ["INSTRUCTION_FIRST", "TEMPLATE", "RandomWeights", "SyntheticCheckpoint"]

TEMPLATE = ("<context>", "{prompt}{text}", "<eos>")
INSTRUCTION_FIRST = ("{prompt}", "<context>", "{text}", "<eos>")
STORED_DTYPE = torch.bfloat16
MOST_ROWS = 512
"""Of a decoder's sequence, the contextual token and EOS among them."""


class RandomWeights:
    """Weights that are made as they are taken, as ``model.loading.WeightSource`` wants them.

    Linear layers are normal with variance 1 / inputs, those that write to a decoder's residual
    stream smaller by the root of how many do; norms are near 1, biases and embeddings small. So
    activations keep their size through any number of layers.

    Args:
        part: ``decoder``, ``encoder`` or ``projector``: other weights in each.
        shapes: of all tensors, by name.
        device: where they are made.
        seed: of all of them.
        residual_layers: linear layers that write to the residual stream, 0 for no such scaling.
    """

    def __init__(
        self,
        part: str,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        seed: int = 0,
        residual_layers: int = 0,
    ) -> None:
        self._part = part
        self._shapes = dict(shapes)
        self._device = device
        self._seed = seed
        self._residual_layers = residual_layers
        self._taken: set[str] = set()
        self._generator = torch.Generator(device)

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._shapes.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One weight, bfloat16.

        Raises:
            CheckpointError: there is none of that name, or it has another shape.
        """
        if self._shapes.get(name) != shape:
            found = self._shapes.get(name, "missing")
            raise CheckpointError(f"{self._part}: weight {name} is {found}, asked for {shape}")
        self._taken.add(name)
        self._generator.manual_seed(self._seed + zlib.crc32(f"{self._part}/{name}".encode()))
        mean, deviation = self._distribution(name, shape)
        weight = torch.empty(shape, dtype=STORED_DTYPE, device=self._device)
        return weight.normal_(mean, deviation, generator=self._generator)

    def refuse_extra(self, ignorable: Iterable[str] = ()) -> None:
        """Refuses weights that nobody took.

        Raises:
            CheckpointError: naming the first.
        """
        endings = tuple(ignorable)
        left = [name for name in self._shapes.keys() - self._taken if not name.endswith(endings)]
        if left:
            raise CheckpointError(f"{self._part}: weight {sorted(left)[0]} was not taken")

    def _distribution(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Mean and standard deviation."""
        if name.endswith("bias"):
            return 0.0, 0.02
        if len(shape) == 1:
            return 1.0, 0.05
        if "embed" in name:
            return 0.0, 1.0 if self._part == "decoder" else 0.05
        deviation = 1 / math.sqrt(shape[1])
        if self._residual_layers and name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= math.sqrt(self._residual_layers)
        return 0.0, deviation


class SyntheticCheckpoint(ModelSource):
    """A checkpoint directory with configs and the default model's tokenizers, and random weights.

    Args:
        directory: that ``write`` made.
        shape: of the model.
        device: where weights are made.
        seed: of the weights.
    """

    def __init__(
        self, directory: Path, shape: ModelShape, device: torch.device, seed: int = 0
    ) -> None:
        self.directory = directory
        self.shape = shape
        self.device = device
        self.seed = seed
        self.name = shape.name

    @classmethod
    def write(
        cls,
        directory: Path,
        shape: ModelShape,
        device: torch.device,
        template: tuple[str, ...] = TEMPLATE,
        seed: int = 0,
    ) -> SyntheticCheckpoint:
        """Write the directory.

        Args:
            directory: made here.
            shape: of the model.
            device: where weights are made.
            template: of the decoder's sequence; the contextual token and EOS are pooled.
            seed: of the weights.
        """
        directory.mkdir(parents=True)
        write_configs(directory, shape)
        Causal2VecConfig(
            template=template,
            max_length=MOST_ROWS,
            encoder=EncoderConfig(max_length=shape.encoder.num_positions),
            projector=ProjectorConfig(shape.projector_size),
        ).save(directory)
        return cls(directory, shape, device, seed)

    @cached_property
    def description(self) -> CheckpointDescription:
        """What the directory says, read as of any checkpoint; of stored weights it says nothing."""
        config = Causal2VecConfig.load(self.directory)
        decoder_config = load_transformers_config(self.directory / "decoder")
        encoder_config = load_transformers_config(self.directory / "encoder")
        shape = DecoderShape.from_transformers(decoder_config, str(self.directory))
        return CheckpointDescription(
            self.directory, config, decoder_config, encoder_config, shape, STORED_DTYPE
        )

    def open_weights(self, folder: Path, filename: str | None = None) -> RandomWeights:
        """The weights of ``decoder``, ``encoder``, or the projector's file."""
        if filename == PROJECTOR_NAME:
            return self.weights("projector")
        return self.weights("decoder" if folder.name == "decoder" else "encoder")

    def weights(self, part: Part) -> RandomWeights:
        """The weights of ``decoder``, ``encoder`` or ``projector``."""
        residual = 2 * self.shape.decoder.num_layers if part == "decoder" else 0
        return RandomWeights(part, self.shapes(part), self.device, self.seed, residual)

    def module(self, part: Part, dtype: torch.dtype) -> Any:
        """See the base class; its weights are those of the engine."""
        if part == "projector":
            return self._projector(dtype)
        module, weights = self.on_meta(part), self.weights(part)
        shapes = self.shapes(part)
        state = {name: weights.take(name, shape).to(dtype) for name, shape in shapes.items()}
        module.load_state_dict(state, assign=True)
        # What is computed, not loaded, was computed on the meta device, that is not at all.
        if part == "decoder":
            module.rotary_emb = type(module.rotary_emb)(config=module.config).to(self.device)
        else:
            positions = torch.arange(module.config.max_position_embeddings, device=self.device)
            module.embeddings.position_ids = positions[None]
            module.embeddings.token_type_ids = torch.zeros_like(positions[None])
        tensors = (*module.named_parameters(), *module.named_buffers())
        left = [name for name, value in tensors if value.is_meta]
        assert not left, left
        return module.eval()

    def _projector(self, dtype: torch.dtype) -> torch.nn.Module:
        weights, shapes = self.weights("projector"), self.shapes("projector")
        layers: dict[str, torch.nn.Module] = {}
        for name in ("linear_1", "linear_2"):
            width, size = shapes[f"{name}.weight"]
            layers[name] = torch.nn.Linear(size, width, device="meta")
            state = {
                key: weights.take(f"{name}.{key}", shapes[f"{name}.{key}"]).to(dtype)
                for key in ("weight", "bias")
            }
            layers[name].load_state_dict(state, assign=True)
        return torch.nn.Sequential(layers["linear_1"], torch.nn.GELU(), layers["linear_2"])


def write_configs(directory: Path, shape: ModelShape) -> None:
    """Write the folders of decoder and encoder, without weights."""
    for name, part in (("decoder", shape.decoder), ("encoder", shape.encoder)):
        part.config().save_pretrained(directory / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(default_model_path() / name / file, directory / name / file)
