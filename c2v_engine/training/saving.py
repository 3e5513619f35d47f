"""What training writes: a checkpoint that the engine loads as it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from c2v_engine.model.assemble import copy_model_files
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.projector import PROJECTOR_NAME
from c2v_engine.reference import Causal2VecReference

ADAPTER = "adapter"


def save_checkpoint(
    reference: Causal2VecReference, source: Path, target: Path, dtype: torch.dtype
) -> None:
    """Write a trained model as a checkpoint directory.

    Parts that were not trained are copied from where they came from. A LoRA adapter stays apart,
    in ``adapter/``: the engine merges it on load.

    Args:
        reference: the trained modules.
        source: the checkpoint that training started from: tokenizers, frozen parts, config.
        target: the directory; files in it are replaced.
        dtype: of the weights that were trained.
    """
    config = Causal2VecConfig.load(source)
    target.mkdir(parents=True, exist_ok=True)
    with_adapter = hasattr(reference.decoder, "peft_config")
    if with_adapter:
        shutil.rmtree(target / ADAPTER, ignore_errors=True)
        reference.decoder.save_pretrained(str(target / ADAPTER))
        (target / ADAPTER / "README.md").unlink(missing_ok=True)  # it names the source's path
        config = replace(config, decoder=replace(config.decoder, adapter=ADAPTER))
    parts = [(config.decoder.path, None if with_adapter else reference.decoder)]
    if config.encoder is not None:
        parts.append((config.encoder.path, reference.encoder))
        weights = {
            name: value.detach().to("cpu", dtype).contiguous()
            for name, value in reference.projector.state_dict().items()
        }
        save_file(weights, target / PROJECTOR_NAME, metadata={"format": "pt"})
    for name, part in parts:
        trained = part is not None and any(p.requires_grad for p in part.parameters())
        copy_model_files(source / name, target / name, weights=not trained)
        if trained:
            _save_part(part, target / name, dtype)
    config.save(target)


def _save_part(part: Any, folder: Path, dtype: torch.dtype) -> None:
    state = {name: value.detach().to("cpu", dtype) for name, value in part.state_dict().items()}
    saved_dtype, part.config.dtype = part.config.dtype, dtype
    try:
        part.save_pretrained(str(folder), state_dict=state)
    finally:
        part.config.dtype = saved_dtype
