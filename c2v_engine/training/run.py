"""A training run, from its YAML file to the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from c2v_engine.errors import ConfigError, OutputError
from c2v_engine.training.config import TrainConfig, data_set_name
from c2v_engine.training.data import DataSet, map_data_set, read_data_set

MODEL_FOLDER, DATA_FOLDER, RUN_NAME = "model", "data", "run.json"
TRAINER_STATE = "trainer_state.json"  # transformers writes it last


class RunReport(NamedTuple):
    """What a run did.

    Attributes:
        steps: optimiser steps in all, resumed ones included.
        pairs: rows of all data sets.
        loss: the last one logged.
        metrics: the last validation's.
        seconds: of this process's training.
        model: the checkpoint.
    """

    steps: int
    pairs: int
    loss: float | None
    metrics: Mapping[str, float]
    seconds: float
    model: Path


def train(config: TrainConfig, *, resume: bool = False, quiet: bool = False) -> RunReport:
    """Train a model and write its checkpoint to ``<output>/model``.

    Every row of the data and the whole config are checked before the model is opened.

    Args:
        config: the run.
        resume: go on from the output's last ``checkpoint-*``; the config must be the same.
        quiet: no progress bar and no metrics on the console.

    Raises:
        ConfigError: config and model do not fit together.
        InputError: rows that can not be trained on, or a loss that is not finite.
        OutputError: the output holds another run, or nothing to resume.
        CheckpointError: the model can not be opened.
    """
    from accelerate import PartialState
    from sentence_transformers import SentenceTransformer

    from c2v_engine.training.metrics import MetricsWriter
    from c2v_engine.training.opening import open_for_training
    from c2v_engine.training.trainer import Causal2VecTrainer
    from c2v_engine.training.validation import open_validation

    output = Path(config.output)
    process = PartialState(cpu=config.device == "cpu")
    _check_output(output, resume)
    process.wait_for_everyone()  # nobody looks at what another one writes
    data = _read_data(config, output, process)
    record = _record(config, data)
    checkpoint = _last_checkpoint(output) if resume else None
    if resume:
        _check_record(output, record)
    validation = None if config.validation is None else open_validation(config.validation)
    module = open_for_training(config)
    prompts = _prompts(config, module.reference.config.prompts)
    arguments = _arguments(config, output, prompts, quiet)
    model = SentenceTransformer(modules=[module], device="cpu" if config.device == "cpu" else None)
    if validation is not None:
        validation.use_prompts(next(iter(prompts.values())))
    callbacks = []
    if process.is_main_process:
        (output / RUN_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        resumed = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        metric = None if config.validation is None else config.validation.metric
        callbacks.append(MetricsWriter(output, metric, resumed))
    trainer = Causal2VecTrainer(
        model=model,
        args=arguments,
        train_dataset=_datasets(data),
        loss=_loss(config, model, process.num_processes),
        evaluator=validation,
        callbacks=callbacks,
    )
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    scores = trainer.evaluate() if validation is not None else {}
    if process.is_main_process:
        module.save(str(output / MODEL_FOLDER))
    process.wait_for_everyone()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return RunReport(
        trainer.state.global_step,
        sum(one.rows for one in data),
        logged[-1] if logged else None,
        {k.removeprefix("eval_"): v for k, v in scores.items() if "@" in k},
        float(result.metrics["train_runtime"]),
        output / MODEL_FOLDER,
    )


def _check_output(output: Path, resume: bool) -> None:
    """Check that the folder holds the run to resume, or nothing but rows of one that failed."""
    if resume and not (output / RUN_NAME).is_file():
        raise OutputError(f"{output}: holds no run to resume")
    if not resume and output.exists() and any(p.name != DATA_FOLDER for p in output.iterdir()):
        raise OutputError(f"{output}: is not empty; resume its run, or choose another output")


def _record(config: TrainConfig, data: list[DataSet]) -> dict[str, Any]:
    """What a run depends on, as ``run.json`` keeps it: its values, and the rows of its data."""
    rows = {one.name: {"rows": one.rows, "digest": one.digest} for one in data}
    record: dict[str, Any] = json.loads(json.dumps({**asdict(config), "rows": rows}))
    return record


def _check_record(output: Path, wanted: dict[str, Any]) -> None:
    """Check that a run is the one that the folder holds."""
    try:
        found = json.loads((output / RUN_NAME).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OutputError(f"{output / RUN_NAME}: not valid JSON: {error}") from None
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        if key == "rows":
            raise ConfigError("the rows of the data are not those of the run to resume")
        raise ConfigError(f"{key} is {value!r}, but the run to resume has {found.get(key)!r}")


def _last_checkpoint(output: Path) -> Path | None:
    """The last checkpoint that is whole: its last file is there."""
    whole = [folder for folder in output.glob("checkpoint-*") if (folder / TRAINER_STATE).is_file()]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _read_data(config: TrainConfig, output: Path, process: Any) -> list[DataSet]:
    """Read every data set once a machine; its other processes map what was written."""
    folder = output / DATA_FOLDER
    data = []
    if process.is_local_main_process:
        data = [read_data_set(one, folder) for one in config.data]
    process.wait_for_everyone()
    return data or [map_data_set(one, folder) for one in config.data]


def _datasets(data: list[DataSet]) -> Any:
    from datasets import DatasetDict

    return DatasetDict({one.name: one.table for one in data})


def _prompts(config: TrainConfig, named: Mapping[str, str]) -> dict[str, dict[str, str]]:
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


def _loss(config: TrainConfig, model: Any, processes: int) -> Any:
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
    if config.mini_batch_size is None:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=config.mini_batch_size, **options
    )


def _arguments(
    config: TrainConfig, output: Path, prompts: dict[str, dict[str, str]], quiet: bool
) -> Any:
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
        use_cpu=config.device == "cpu",
        report_to="none",
        disable_tqdm=quiet,
        dataloader_pin_memory=config.device != "cpu",
    )
    # Several visible GPUs would make one process wrap the model in DataParallel, which sums other
    # losses: a process trains on one, and accelerate starts several.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
