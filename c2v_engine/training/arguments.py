"""A run's values as the trainer takes them: prompts, loss, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2v_engine.errors import ConfigError
from c2v_engine.training.config import TrainConfig, data_set_name

Prompts = dict[str, dict[str, str]]


def make_prompts(config: TrainConfig, named: Mapping[str, str]) -> Prompts:
    """Prompts by data set and column, with the model's names replaced by their texts."""
    prompts = {}
    for one in config.data:
        query, document = (
            resolve_prompt(prompt, named) for prompt in (one.query_prompt, one.document_prompt)
        )
        columns = {"query": query, "positive": document, "negative": document}
        prompts[data_set_name(one)] = columns
    return prompts


def resolve_prompt(prompt: str, named: Mapping[str, str]) -> str:
    """A prompt's text: ``name:query`` is the model's prompt of that name."""
    if not prompt.startswith("name:"):
        return prompt
    name = prompt.removeprefix("name:").strip()
    if name not in named:
        known = ", ".join(named) or "none"
        raise ConfigError(f"prompt {prompt!r} names no prompt of the model; it has {known}")
    return named[name]


def make_loss(config: TrainConfig, model: Any, processes: int) -> Any:
    """InfoNCE with in-batch and mined negatives (arXiv 1705.00652), gradient-cached on demand."""
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    options: dict[str, Any] = {
        "scale": 1 / config.temperature,
        "directions": config.directions,
        "gather_across_devices": processes > 1,
    }
    if set(config.directions) == {"query_to_doc", "doc_to_query"}:
        options["partition_mode"] = "per_direction"
    if config.mini_batch_size is None:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=config.mini_batch_size, **options
    )


def on_cpu(config: TrainConfig) -> bool:
    """Whether a run computes on the CPU: it asks for that, or there is nothing else."""
    import torch

    return config.device == "cpu" or not torch.accelerator.is_available()


def make_arguments(config: TrainConfig, output: Path, prompts: Prompts, quiet: bool) -> Any:
    """Make the trainer's arguments.

    Raises:
        ConfigError: an unknown scheduler.
    """
    from sentence_transformers import SentenceTransformerTrainingArguments
    from transformers import SchedulerType

    known = [scheduler.value for scheduler in SchedulerType]
    if config.scheduler not in known:
        raise ConfigError(f"scheduler is {config.scheduler!r}, expected one of {', '.join(known)}")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        learning_rate=config.learning_rate,
        learning_rate_mapping=dict(config.learning_rates),
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bfloat16",
        seed=config.seed,
        data_seed=config.seed,
        prompts=prompts,
        batch_sampler="no_duplicates",
        multi_dataset_batch_sampler=config.mixing,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no" if config.validation_steps is None else "steps",
        eval_steps=config.validation_steps,
        save_strategy="no" if config.save_steps is None else "steps",
        save_steps=config.save_steps or 500,
        save_total_limit=config.save_total_limit,
        use_cpu=on_cpu(config),
        report_to="none",
        disable_tqdm=quiet,
        dataloader_pin_memory=not on_cpu(config),
    )
    # Several visible GPUs would make one process wrap the model in DataParallel, which sums other
    # losses: a process trains on one, and accelerate starts several.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
