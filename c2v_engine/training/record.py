"""A run's folder: what it holds, whose it is, and where to go on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c2v_engine.errors import ConfigError, OutputError
from c2v_engine.jobs.corpus.folder.layout import LOCK_NAME
from c2v_engine.training.config import TrainConfig
from c2v_engine.training.data import DataSet

MODEL_FOLDER, DATA_FOLDER, RUN_NAME = "model", "data", "run.json"
TRAINER_STATE = "trainer_state.json"  # transformers writes it last
TRAINED_WEIGHTS = "trained.safetensors"
CHECKPOINT_FILES = (TRAINED_WEIGHTS, "optimizer.pt", "scheduler.pt", TRAINER_STATE)


def check_output(output: Path, resume: bool) -> None:
    """Check that the folder holds the run to resume, or nothing but rows of one that failed.

    Raises:
        OutputError: it does not.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file, expected a folder or nothing")
    if resume and not (output / RUN_NAME).is_file():
        raise OutputError(f"{output}: holds no run to resume")
    left = {DATA_FOLDER, LOCK_NAME}  # by a run that failed before it began
    if not resume and output.exists() and any(p.name not in left for p in output.iterdir()):
        raise OutputError(f"{output}: is not empty; resume its run, or choose another output")


def make_record(config: TrainConfig, data: list[DataSet], processes: int) -> dict[str, Any]:
    """What a run depends on: its values, its data's rows, and how many processes share them."""
    rows = {one.name: {"rows": one.rows, "digest": one.digest} for one in data}
    values = {**asdict(config), "rows": rows, "processes": processes}
    record: dict[str, Any] = json.loads(json.dumps(values))
    return record


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``."""
    text = json.dumps(record, indent=2) + "\n"
    (output / RUN_NAME).write_text(text, encoding="utf-8")


def check_record(output: Path, wanted: dict[str, Any]) -> None:
    """Check that a run is the one that the folder holds.

    Raises:
        ConfigError: it is another; the message names the first key that differs.
        OutputError: ``run.json`` is damaged.
    """
    try:
        found = json.loads((output / RUN_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{output / RUN_NAME}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise OutputError(f"{output / RUN_NAME}: expected a JSON object")
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        if key == "rows":
            raise ConfigError("the rows of the data are not those of the run to resume")
        raise ConfigError(f"{key} is {value!r}, but the run to resume has {found.get(key)!r}")


def last_checkpoint(output: Path) -> Path:
    """The last ``checkpoint-*`` that was written whole.

    Raises:
        OutputError: there is none.
    """
    for folder in sorted(output.glob("checkpoint-*"), key=step_of, reverse=True):
        if all((folder / name).is_file() for name in CHECKPOINT_FILES) and _has_steps(folder):
            return folder
    raise OutputError(
        f"{output}: holds no whole checkpoint to resume; remove the folder to start again"
    )


def _has_steps(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and {"global_step", "max_steps"} <= set(state)


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
