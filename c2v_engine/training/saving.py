"""What training writes: a checkpoint that the engine loads as it is."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from c2v_engine.model.assemble import copy_model_files
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.modules_json import save_modules_json
from c2v_engine.model.projector import PROJECTOR_NAME
from c2v_engine.model.summary import SUMMARY_NAME
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
        dtype: of the weights that were trained; an adapter stays float32.
    """
    config = Causal2VecConfig.load(source)
    target.mkdir(parents=True, exist_ok=True)
    with_adapter = hasattr(reference.decoder, "peft_config")
    if with_adapter:
        _save_adapter(reference.decoder, target / ADAPTER, config.decoder.path)
        config = replace(config, decoder=replace(config.decoder, adapter=ADAPTER))
    elif config.decoder.adapter is not None:  # merged in memory, below a frozen decoder
        copy_model_files(source / config.decoder.adapter, target / config.decoder.adapter)
    parts = [(config.decoder.path, None if with_adapter else reference.decoder)]
    if config.encoder is not None:
        parts.append((config.encoder.path, reference.encoder))
        if _is_trained(reference.projector):
            save_file(_weights(reference.projector, dtype), target / PROJECTOR_NAME)
        else:
            shutil.copyfile(source / PROJECTOR_NAME, target / PROJECTOR_NAME)
    if reference.summary is not None:
        save_file({"weight": reference.summary.detach().to("cpu", dtype)}, target / SUMMARY_NAME)
    for name, part in parts:
        trained = part is not None and _is_trained(part)
        copy_model_files(source / name, target / name, weights=not trained)
        if trained:
            _save_part(part, target / name, dtype)
    config.save(target)
    save_modules_json(config, target)
    mask = os.umask(0)
    os.umask(mask)
    for path in target.rglob("*.safetensors"):  # safetensors leaves its files to their owner alone
        path.chmod(0o666 & ~mask)


def _is_trained(part: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _weights(part: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = part.state_dict()
    return {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}


def _save_adapter(decoder: Any, folder: Path, base: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    decoder.save_pretrained(str(folder))
    # Both name the path that training started from.
    (folder / "README.md").unlink(missing_ok=True)
    _set_key(folder / "adapter_config.json", "base_model_name_or_path", base)


def _save_part(part: Any, folder: Path, dtype: torch.dtype) -> None:
    part.save_pretrained(str(folder), state_dict=_weights(part, dtype))
    # transformers notes the dtype in memory, not that of the weights it was given.
    _set_key(folder / "config.json", "dtype", str(dtype).removeprefix("torch."))


def _set_key(path: Path, key: str, value: str) -> None:
    """Change one value of a JSON file that transformers or peft wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values[key] = value
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
