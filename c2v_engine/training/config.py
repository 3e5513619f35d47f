"""A training run's YAML file: frozen dataclasses, checked once, at the door."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from c2v_engine.errors import ConfigError, InputError, MissingPackageError

DecoderTraining = Literal["lora", "full", "frozen"]
TrainingDtype = Literal["float32", "bfloat16"]
Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Mixing = Literal["proportional", "round_robin"]


@dataclass(frozen=True)
class DataConfig:
    """One data set: a .jsonl or .parquet file with ``query``, ``positive``, optional ``negative``.

    Attributes:
        path: the file; relative paths start at the YAML file's folder.
        name: what metrics and errors call it; by default the file's name.
        query_prompt: prompt of the query: a text, or ``name:query`` for the model's of that name.
        document_prompt: prompt of positive and negative.
        max_rows: read at most so many rows.
    """

    path: str
    name: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    max_rows: int | None = None

    def __post_init__(self) -> None:
        name = data_set_name(self)
        if name in ("", ".", "..") or Path(name).name != name:
            raise ConfigError(f"data has the name {name!r}, expected one that can name a file")
        if self.max_rows is not None and self.max_rows < 2:
            raise ConfigError(f"max_rows is {self.max_rows!r}, expected at least 2")


@dataclass(frozen=True)
class LoraConfig:
    """The decoder's LoRA adapter (arXiv 2106.09685).

    Attributes:
        r: rank.
        alpha: scale; the update is ``alpha / r * B A``.
        dropout: of the adapter's input.
        target_modules: names of the linear layers; None for all of them.

    An adapter that the model has already is trained further with its own dropout and modules; rank
    and alpha must be its.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise ConfigError(f"lora has r {self.r} and alpha {self.alpha}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout!r}, expected 0 to below 1")
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("lora.target_modules is empty, expected names or null")


@dataclass(frozen=True)
class ValidationConfig:
    """What the model is measured on during training.

    Attributes:
        path: a folder in the BEIR layout, or a file of pairs like the training data.
        split: of the folder's qrels; a file has none.
        query_prompt: as in the data; None for that of the first data set.
        document_prompt: likewise.
        metric: which metric is plotted.
    """

    path: str
    split: str = "test"
    query_prompt: str | None = None
    document_prompt: str | None = None
    metric: Literal["ndcg@10", "recall@10", "mrr@10"] = "ndcg@10"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run depends on.

    Attributes:
        model: the Causal2Vec checkpoint to start from (``c2v create`` assembles one).
        output: folder of the run: ``model/`` (the trained checkpoint), ``checkpoint-*/``,
            ``metrics.jsonl``, ``metrics.png``, ``run.json``.
        data: the data sets.
        validation: what the model is measured on, with texts cut at ``max_length`` too.
        decoder: ``lora``, ``full`` or ``frozen``.
        encoder: whether the encoder is trained.
        projector: whether the projector is trained.
        lora: the adapter; only with ``decoder: lora``.
        temperature: of the contrastive loss (InfoNCE over cosine similarities).
        directions: which similarities the loss contrasts, as sentence-transformers names them.
            With ``doc_to_query`` alone beside ``query_to_doc`` there is a softmax for each, and
            the loss is their mean (symmetric InfoNCE); with others all share one softmax.
        mini_batch_size: gradient caching (arXiv 2101.06983) in such pieces; None computes a batch
            in one piece.
        batch_size: pairs a device and step; each is the others' negative.
        steps: optimiser steps; None for ``epochs``.
        epochs: passes over the data.
        mixing: how batches of several data sets alternate; a device's batch never mixes them.
        max_length: texts are shortened to so many tokens while training.
        group_rows: texts of similar length computed together; None for a batch as it is.
        learning_rate: of everything without its own.
        learning_rates: regular expressions of parameter names, and their rates.
        warmup_ratio: part of the steps in which the rate rises.
        scheduler: a transformers scheduler's name.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to it.
        dtype: arithmetic of the matrix products; weights that are trained stay in float32.
        save_dtype: of the trained checkpoint's weights; a LoRA adapter stays float32.
        gradient_checkpointing: recompute activations in the backward pass.
        attention: transformers' ``attn_implementation``.
        device: ``auto`` or ``cpu``.
        seed: of data order, dropout and new weights.
        logging_steps: steps between two losses.
        validation_steps: steps between two validations; None for at the end alone.
        save_steps: steps between two resumable checkpoints; None for none.
        save_total_limit: checkpoints kept.
    """

    model: str
    output: str
    data: tuple[DataConfig, ...]
    validation: ValidationConfig | None = None
    decoder: DecoderTraining = "lora"
    encoder: bool = True
    projector: bool = True
    lora: LoraConfig | None = None
    temperature: float = 0.05
    directions: tuple[Direction, ...] = ("query_to_doc",)
    mini_batch_size: int | None = None
    batch_size: int = 64
    steps: int | None = None
    epochs: float = 1.0
    mixing: Mixing = "proportional"
    max_length: int | None = None
    group_rows: int | None = 64
    learning_rate: float = 1e-4
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    warmup_ratio: float = 0.1
    scheduler: str = "linear"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dtype: TrainingDtype = "bfloat16"
    save_dtype: TrainingDtype = "bfloat16"
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = 0
    logging_steps: int = 10
    validation_steps: int | None = None
    save_steps: int | None = None
    save_total_limit: int = 2

    def __post_init__(self) -> None:
        for name in ("temperature", "learning_rate", "epochs", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected more than 0")
        for name in (
            "batch_size", "steps", "max_length", "group_rows", "mini_batch_size",
            "logging_steps", "validation_steps", "save_steps", "save_total_limit",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value!r}, expected a whole number of at least 1")
        for name in ("weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected 0 or more")
        if self.seed >= 2**32 or not math.isfinite(self.weight_decay):
            raise ConfigError("seed must be below 2^32, and weight_decay finite")
        for pattern, rate in self.learning_rates.items():
            _check_pattern(pattern, rate)
        if self.batch_size < 2:
            raise ConfigError("batch_size is 1: a pair needs another one as its negative")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio is {self.warmup_ratio!r}, expected 0 to below 1")
        if not self.data:
            raise ConfigError("data is empty, expected at least one data set")
        names = [data_set_name(data) for data in self.data]
        if len(set(names)) != len(names):
            raise ConfigError(f"data has two sets of one name: {', '.join(names)}; name them")
        if self.lora is not None and self.decoder != "lora":
            raise ConfigError(f"lora is given, but decoder is {self.decoder!r}, not 'lora'")
        if self.decoder == "frozen" and not (self.encoder or self.projector):
            raise ConfigError("nothing is trained: decoder is frozen, encoder and projector too")
        if "query_to_doc" not in self.directions:
            raise ConfigError("directions lacks query_to_doc, the term with the positive")
        if self.validation_steps is not None and self.validation is None:
            raise ConfigError("validation_steps is given, but no validation")

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a run's YAML file; its relative paths start at the file's folder.

        Raises:
            InputError: the file can not be read.
            ConfigError: it is not YAML, or a key is missing, unknown or wrong, by its name.
        """
        try:
            import yaml
        except ImportError:
            raise MissingPackageError("yaml", "train") from None

        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: can not be read: {error}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from None
        try:
            return cls.from_dict(values, path.parent.resolve())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Any, folder: Path | None = None) -> TrainConfig:
        """Check and build a config from parsed YAML; relative paths start at ``folder``.

        Raises:
            ConfigError: a key is missing, unknown or wrong, by its name.
        """
        values = dict(_mapping("the file", values))
        data = values.get("data")
        if not isinstance(data, list):
            raise ConfigError(f"data is {data!r}, expected a list of data sets")
        values["data"] = tuple(
            _build(DataConfig, f"data[{index}].", _mapping(f"data[{index}]", entry), folder)
            for index, entry in enumerate(data)
        )
        for name, section in (("lora", LoraConfig), ("validation", ValidationConfig)):
            if values.get(name) is not None:
                values[name] = _build(section, f"{name}.", _mapping(name, values[name]), folder)
        if values.get("decoder", "lora") == "lora" and values.get("lora") is None:
            values["lora"] = LoraConfig()
        return _build(cls, "", values, folder)


def data_set_name(data: DataConfig) -> str:
    """What a data set is called."""
    return data.name or Path(data.path).name.split(".")[0]


def _check_pattern(pattern: str, rate: float) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"learning_rates: {pattern!r} is no regular expression: {error}"
        ) from None
    if not 0 <= rate < math.inf:
        raise ConfigError(f"learning_rates.{pattern} is {rate!r}, expected 0 or more")


_Built = TypeVar("_Built")
PATHS = {"model", "output", "path"}


def _mapping(name: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is {values!r}, expected keys and values")
    return values


def _build(
    cls: type[_Built], prefix: str, values: Mapping[str, Any], folder: Path | None
) -> _Built:
    from typing import get_type_hints

    hints = get_type_hints(cls)
    known = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, values)) - known)
    if unknown:
        names = ", ".join(sorted(known))
        raise ConfigError(f"unknown key {prefix}{unknown[0]}; known are {names}")
    for required in PATHS & known:
        if values.get(required) is None:
            raise ConfigError(f"{prefix}{required} is missing")
    checked = {}
    for name, value in values.items():
        checked[name] = _value(prefix + name, value, hints[name])
        if name in PATHS and folder is not None:
            checked[name] = str(folder / checked[name])
    return cls(**checked)


def _value(name: str, value: Any, hint: Any) -> Any:
    """Check a value against its annotation: literals, numbers, texts, lists of these."""
    choices = [hint, *get_args(hint)] if _is_union(hint) else [hint]
    if value is None and type(None) in get_args(hint):
        return None
    for choice in choices:
        if getattr(choice, "__origin__", None) is Literal and value in get_args(choice):
            return value
        if getattr(choice, "__origin__", None) is tuple and isinstance(value, (list, tuple)):
            item = get_args(choice)[0]
            return tuple(_value(f"{name}[{index}]", v, item) for index, v in enumerate(value))
        if getattr(choice, "__origin__", None) is not None and isinstance(value, Mapping):
            return {str(key): _value(f"{name}.{key}", v, float) for key, v in value.items()}
        if isinstance(choice, type) and _is_a(value, choice):
            return choice(value) if choice is float else value
    raise ConfigError(f"{name} is {value!r}, expected {_expected(hint)}")


def _is_union(hint: Any) -> bool:
    import types
    import typing

    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        if isinstance(value, str):  # YAML reads 1e-4 as a text
            try:
                float(value)
            except ValueError:
                return False
            return True
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _expected(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    parts = []
    for choice in get_args(hint) if _is_union(hint) else [hint]:
        if getattr(choice, "__origin__", None) is Literal:
            parts.append("one of " + ", ".join(map(str, get_args(choice))))
        elif choice is type(None):
            parts.append("null")
        elif getattr(choice, "__origin__", None) is tuple:
            parts.append("a list")
        else:
            parts.append(names.get(choice, "keys and values"))
    return " or ".join(parts)
