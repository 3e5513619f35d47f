"""A training run, from its YAML file to the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from c2v_engine.errors import ConfigError, MissingPackageError, TextError
from c2v_engine.jobs.corpus.folder.locking import locked
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.training.arguments import (
    Prompts,
    make_arguments,
    make_loss,
    make_prompts,
    on_cpu,
    resolve_prompt,
)
from c2v_engine.training.config import TrainConfig
from c2v_engine.training.data import DataSet, map_data_set, read_data_set
from c2v_engine.training.record import (
    DATA_FOLDER,
    MODEL_FOLDER,
    TRAINER_STATE,
    check_output,
    check_record,
    last_checkpoint,
    make_record,
    step_of,
    write_record,
)

PACKAGES = ("sentence_transformers", "accelerate", "datasets", "peft", "matplotlib")


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

    Every row of the data and all values are checked before the model is opened.

    Args:
        config: the run.
        resume: go on from the output's last whole ``checkpoint-*``; values, rows and the number of
            processes must be the same.
        quiet: no progress bar and no metrics on the console.

    Raises:
        MissingPackageError: the ``train`` extra is not installed.
        ConfigError: config and model do not fit together.
        InputError: rows that can not be trained on, or a loss that is not finite.
        OutputError: the output holds another run, or nothing to resume.
        CheckpointError: the model can not be opened.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")
    from accelerate import PartialState

    output = Path(config.output)
    process = PartialState(cpu=on_cpu(config))
    check_output(output, resume)
    process.wait_for_everyone()  # nobody looks at what another one writes
    with locked(output, "run") if process.is_main_process else nullcontext():
        return _train(config, output, process, resume, quiet)


def _train(config: TrainConfig, output: Path, process: Any, resume: bool, quiet: bool) -> RunReport:
    named = Causal2VecConfig.load(config.model).prompts
    prompts = make_prompts(config, named)
    arguments = make_arguments(config, output, prompts, quiet)
    data = _read_data(config, output, process)
    record = make_record(config, data, process.num_processes)
    checkpoint = None
    if resume:
        check_record(output, record)
        checkpoint = last_checkpoint(output)
    validation = _open_validation(config, prompts, named)
    trainer = _make_trainer(config, data, prompts, arguments, validation, process)
    metrics = _add_callbacks(trainer, config, output, checkpoint, quiet)
    if process.is_main_process:
        write_record(output, record)
    seconds = _run(trainer, checkpoint)
    if process.is_main_process:
        trainer.model[0].save(str(output / MODEL_FOLDER))
    process.wait_for_everyone()
    scores = _scores(trainer) if validation is not None else {}
    if metrics is not None:
        metrics.plot()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return RunReport(
        trainer.state.global_step,
        sum(one.rows for one in data),
        logged[-1] if logged else None,
        scores,
        seconds,
        output / MODEL_FOLDER,
    )


def _read_data(config: TrainConfig, output: Path, process: Any) -> list[DataSet]:
    """Read every data set once a machine; its other processes map what was written."""
    folder = output / DATA_FOLDER
    data = []
    if process.is_local_main_process:
        data = [read_data_set(one, folder) for one in config.data]
    process.wait_for_everyone()
    data = data or [map_data_set(one, folder) for one in config.data]
    columns = {one.name: one.table.column_names for one in data}
    if process.num_processes > 1 and len({tuple(names) for names in columns.values()}) > 1:
        # Processes may draw different sets in one step, and gather as many columns as theirs has.
        raise ConfigError(
            f"data sets with and without negatives can not share several processes: {columns}"
        )
    return data


def _open_validation(config: TrainConfig, prompts: Prompts, named: Mapping[str, str]) -> Any:
    if config.validation is None:
        return None
    from c2v_engine.training.validation import open_validation

    validation = open_validation(config.validation)
    first = next(iter(prompts.values()))
    chosen = [
        first[column] if prompt is None else resolve_prompt(prompt, named)
        for column, prompt in (
            ("query", config.validation.query_prompt),
            ("positive", config.validation.document_prompt),
        )
    ]
    validation.use_prompts(*chosen)
    return validation


def _make_trainer(
    config: TrainConfig,
    data: list[DataSet],
    prompts: Prompts,
    arguments: Any,
    validation: Any,
    process: Any,
) -> Any:
    from datasets import DatasetDict
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from c2v_engine.training.opening import open_for_training
    from c2v_engine.training.trainer import Causal2VecTrainer

    logging.disable_progress_bar()  # of loading and saving; the trainer has its own
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports BERT's pooler, which is not read, as missing
    try:
        module = open_for_training(config)
    finally:
        logging.set_verbosity(verbosity)
    for name, columns in prompts.items():
        for prompt in set(columns.values()):
            try:
                module.preprocess(["a"], prompt)
            except TextError as error:
                raise ConfigError(f"data set {name!r}: {error.reason}") from None
    for pattern in config.learning_rates:
        parameters = module.named_parameters()
        names = [f"model.0.{name}" for name, value in parameters if value.requires_grad]
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(f"learning_rates: {pattern!r} matches no parameter that is trained")
    device = "cpu" if on_cpu(config) else None
    model = SentenceTransformer(modules=[module], device=device)
    return Causal2VecTrainer(
        model=model,
        args=arguments,
        train_dataset=DatasetDict({one.name: one.table for one in data}),
        loss=make_loss(config, model, process.num_processes),
        evaluator=validation,
    )


def _add_callbacks(
    trainer: Any, config: TrainConfig, output: Path, checkpoint: Path | None, quiet: bool
) -> Any:
    from transformers import PrinterCallback

    from c2v_engine.training.metrics import MetricsWriter

    if quiet:
        trainer.remove_callback(PrinterCallback)
    if not trainer.is_world_process_zero():
        return None
    metric = None if config.validation is None else config.validation.metric
    metrics = MetricsWriter(output, metric, 0 if checkpoint is None else step_of(checkpoint))
    trainer.add_callback(metrics)
    return metrics


def _run(trainer: Any, checkpoint: Path | None) -> float:
    """Train, and give the seconds it took."""
    if checkpoint is not None:
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if state.global_step >= state.max_steps:
            # Only what comes after the last step is missing; the trainer would take one more.
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return 0.0
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return float(result.metrics["train_runtime"])


def _scores(trainer: Any) -> dict[str, float]:
    """The validation of the last step, which training may have made already."""
    for line in reversed(trainer.state.log_history):
        if line["step"] == trainer.state.global_step and "eval_runtime" in line:
            scores = line
            break
    else:
        scores = trainer.evaluate()
    return {k.removeprefix("eval_"): float(v) for k, v in scores.items() if "@" in k}
