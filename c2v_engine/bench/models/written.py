"""Real checkpoints of a shape with random weights on disk, for whoever needs files to open."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from c2v_engine.bench.models.shapes import ModelShape
from c2v_engine.bench.models.source import Part
from c2v_engine.bench.models.synthetic import SyntheticCheckpoint
from c2v_engine.model.assemble import create_checkpoint
from c2v_engine.model.methods import method_named
from c2v_engine.model.template import CONTEXT

__all__ = ["write_checkpoint"]


def write_checkpoint(
    directory: Path,
    shape: ModelShape,
    method: str,
    *,
    max_length: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write a checkpoint of a shape: the weights of ``RandomWeights``, the default's tokenizers.

    Args:
        directory: holds nothing yet.
        shape: of the model; its encoder is left out where the method has none.
        method: how the decoder embeds, a name in ``model.methods.METHODS``.
        max_length: most rows of the decoder's sequence.
        dtype: of the stored weights; they are made in bfloat16.
        seed: of the weights.
        options: more of ``create_checkpoint``.

    Returns:
        The directory.

    Raises:
        ConfigError: options that do not fit together.
        CheckpointError: the directory holds something already, or can not be written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with_encoder = CONTEXT in method_named(method).template
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=directory.parent) as parts:
        device = torch.device("cpu")
        source = SyntheticCheckpoint.write(Path(parts) / shape.name, shape, device, seed=seed)
        decoder = write_weights(source, "decoder", dtype)
        encoder = write_weights(source, "encoder", dtype) if with_encoder else None
        if with_encoder:
            options = {"projector_hidden_size": shape.projector_size, **options}
        return create_checkpoint(
            directory,
            decoder,
            encoder,
            max_length=max_length,
            seed=seed,
            method=method,
            **options,
        )


def write_weights(source: SyntheticCheckpoint, part: Part, dtype: torch.dtype) -> Path:
    """Write the weights of ``decoder`` or ``encoder`` beside its config; returns the folder."""
    from safetensors.torch import save_file

    weights, shapes = source.weights(part), source.shapes(part)
    folder = source.directory / part
    tensors = {name: weights.take(name, size).to(dtype) for name, size in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
