"""A checkpoint opened for training: which weights move, and in which dtype they are held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from c2v_engine.errors import C2VError, CheckpointError, ConfigError
from c2v_engine.reference import Causal2VecReference
from c2v_engine.training.config import TrainConfig
from c2v_engine.training.module import Causal2VecModule


def open_for_training(config: TrainConfig) -> Causal2VecModule:
    """Open the checkpoint that a run starts from.

    Weights that are trained are float32; a frozen decoder below a LoRA adapter is held in the
    run's dtype, which is most of a large model's memory.

    Returns:
        The module; its parameters' ``requires_grad`` says what is trained.

    Raises:
        ConfigError: the run asks for parts that the checkpoint does not have.
        CheckpointError: the checkpoint can not be opened.
    """
    torch.manual_seed(config.seed)
    path = Path(config.model)
    full = config.decoder == "full"
    try:
        reference = Causal2VecReference.from_pretrained(
            path,
            attn_implementation=config.attention,
            decoder_dtype=torch.float32 if full else getattr(torch, config.dtype),
            merge_adapter=config.decoder != "lora",
        )
    except C2VError:
        raise
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"the model can not be opened with these values: {reason}") from None
    if reference.config.decoder.adapter is not None and config.decoder == "full":
        raise ConfigError(
            "decoder is 'full', but the model's decoder has a LoRA adapter: train with 'lora', "
            "or merge it first"
        )
    module = Causal2VecModule(
        reference, path, config.save_dtype, config.max_length, config.group_rows
    )
    _choose_parameters(reference, config)
    if config.gradient_checkpointing:
        for part in (reference.encoder, reference.decoder):
            if part is not None:
                part.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def _choose_parameters(reference: Causal2VecReference, config: TrainConfig) -> None:
    for part, trained in (
        (reference.encoder, config.encoder),
        (reference.projector, config.projector),
    ):
        if part is not None:
            part.requires_grad_(trained)
    if getattr(reference.encoder, "pooler", None) is not None:
        # Not read, so it never has a gradient, for which several processes would wait.
        reference.encoder.pooler = None
    if config.decoder == "lora":
        reference.decoder = _with_adapter(reference, config)
    else:
        reference.decoder.requires_grad_(config.decoder == "full")
    if not any(parameter.requires_grad for parameter in reference.parameters()):
        raise ConfigError("nothing is trained: the model has no encoder, and the decoder is frozen")


def _with_adapter(reference: Causal2VecReference, config: TrainConfig) -> Any:
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel, get_peft_model

    assert config.lora is not None
    decoder = reference.decoder
    if isinstance(decoder, PeftModel):  # the checkpoint's own adapter goes on
        kept = decoder.peft_config["default"]
        if (kept.r, kept.lora_alpha) != (config.lora.r, config.lora.alpha):
            raise ConfigError(
                f"lora has r {config.lora.r} and alpha {config.lora.alpha}, but the model's "
                f"adapter, which is trained further, has {kept.r} and {kept.lora_alpha}"
            )
        return decoder
    modules = config.lora.target_modules
    options = PeftLoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules="all-linear" if modules is None else list(modules),
    )
    try:
        return get_peft_model(decoder, options)
    except ValueError as error:
        raise CheckpointError(f"lora.target_modules do not fit the decoder: {error}") from None
