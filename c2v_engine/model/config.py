"""The checkpoint's ``config.json``: frozen dataclasses, checked once, at the door."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from c2v_engine.errors import ConfigError
from c2v_engine.model.template import CONTEXT, Template, parse_format

MODEL_TYPE = "causal2vec"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"

AttentionMode = Literal["causal", "bidirectional"]
EncoderPooling = Literal["mean", "cls"]
Overflow = Literal["truncate", "windows"]
ProjectorActivation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"]


def _check_choice(name: str, value: object, literal: Any) -> None:
    if value not in get_args(literal):
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(get_args(literal))}")


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least 1")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, expected true or false")


def _check_relative_path(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r}, expected the name of a folder in the checkpoint")
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise ConfigError(f"{name} is {value!r}: it must stay inside the checkpoint directory")


@dataclass(frozen=True)
class EncoderConfig:
    """The light bidirectional encoder that gives the contextual token.

    Attributes:
        path: folder of its transformers checkpoint, relative to the model directory.
        text: format string over ``{prompt}`` and ``{text}`` that it reads.
        pooling: ``mean`` over all its tokens, special tokens included, or ``cls`` (the first).
        max_length: most tokens it reads at a time, special tokens included.
        overflow: ``truncate`` a longer text, or read it in ``windows`` averaged together.
    """

    path: str = "encoder"
    text: str = "{text}"
    pooling: EncoderPooling = "mean"
    max_length: int = 512
    overflow: Overflow = "truncate"

    def __post_init__(self) -> None:
        _check_relative_path("encoder.path", self.path)
        if not isinstance(self.text, str):
            raise ConfigError(f"encoder.text is {self.text!r}, expected a format string")
        parse_format(self.text, "encoder.text")
        _check_choice("encoder.pooling", self.pooling, EncoderPooling)
        _check_positive("encoder.max_length", self.max_length)
        _check_choice("encoder.overflow", self.overflow, Overflow)


@dataclass(frozen=True)
class ProjectorConfig:
    """The two-layer projector ``c = W2 act(W1 h + b1) + b2`` (arXiv 2507.23386).

    Attributes:
        hidden_size: width p of its hidden layer.
        activation: ``act``.
        bias: whether b1 and b2 exist.
    """

    hidden_size: int
    activation: ProjectorActivation = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        _check_positive("projector.hidden_size", self.hidden_size)
        _check_choice("projector.activation", self.activation, ProjectorActivation)
        _check_bool("projector.bias", self.bias)


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder-only language model.

    Attributes:
        path: folder of its transformers checkpoint, relative to the model directory.
        adapter: folder of a PEFT LoRA adapter merged on load, or None.
    """

    path: str = "decoder"
    adapter: str | None = None

    def __post_init__(self) -> None:
        _check_relative_path("decoder.path", self.path)
        if self.adapter is not None:
            _check_relative_path("decoder.adapter", self.adapter)


@dataclass(frozen=True)
class Causal2VecConfig:
    """What a Causal2Vec checkpoint computes; see ``docs/checkpoint.md``.

    Attributes:
        template: the decoder's sequence, entry by entry.
        pooling: the template entries (by text or index) whose states make the embedding, or
            ``<all>`` for the mean over the whole sequence.
        attention: ``causal``, or ``bidirectional`` for decoders trained without the causal mask.
        normalize: whether embeddings are L2-normalised by default.
        max_length: most rows of the decoder's sequence, everything counted.
        encoder: None for templates without ``<context>``.
        projector: None for templates without ``<context>``.
        decoder: the decoder's folder and adapter.
        prompts: named prompts.
        default_prompt_name: the prompt used where a call names none.
        summary_tokens: rows of ``<summary>``; 0 for templates without it.

    Raises:
        ConfigError: a value that can not be, named by its key.
    """

    template: tuple[str, ...] = (CONTEXT, "{prompt}{text}", "<eos>")
    pooling: tuple[str | int, ...] = (CONTEXT, "<eos>")
    attention: AttentionMode = "causal"
    normalize: bool = True
    max_length: int = 512
    encoder: EncoderConfig | None = None
    projector: ProjectorConfig | None = None
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    summary_tokens: int = 0

    def __post_init__(self) -> None:
        template = self.parsed_template
        _check_choice("attention", self.attention, AttentionMode)
        _check_bool("normalize", self.normalize)
        _check_positive("max_length", self.max_length)
        if template.has_context and (self.encoder is None or self.projector is None):
            raise ConfigError("template has <context>, so encoder and projector must be given")
        if not template.has_context and (self.encoder is not None or self.projector is not None):
            raise ConfigError("template has no <context>, so encoder and projector must be null")
        if template.summary_tokens and self.attention != "causal":
            raise ConfigError(
                f"attention is {self.attention!r}, but template has <summary>, which the text must "
                "not see: expected 'causal'"
            )
        if not self._reads("text"):
            raise ConfigError("neither template nor encoder.text contains {text}")
        if self.max_length < template.single_rows + template.has_text:
            raise ConfigError(
                f"max_length is {self.max_length}, but the template's single rows alone take "
                f"{template.single_rows}"
            )
        if not isinstance(self.prompts, Mapping):
            raise ConfigError(f"prompts is {self.prompts!r}, expected names and their texts")
        for name, prompt in self.prompts.items():
            if not isinstance(name, str) or not isinstance(prompt, str):
                raise ConfigError(f"prompts[{name!r}] is {prompt!r}, expected a text")
        if self.default_prompt_name is not None and (
            not isinstance(self.default_prompt_name, str)
            or self.default_prompt_name not in self.prompts
        ):
            raise ConfigError(
                f"default_prompt_name is {self.default_prompt_name!r}, "
                f"expected one of the prompts: {', '.join(self.prompts) or 'there are none'}"
            )

    @cached_property
    def parsed_template(self) -> Template:
        """Template and pooling, parsed once."""
        return Template(self.template, self.pooling, self.summary_tokens)

    def _reads(self, field_name: str) -> bool:
        """Whether the decoder or the encoder reads ``prompt`` or ``text``."""
        formats = self.parsed_template.formats
        if self.encoder is not None:
            formats = [*formats, parse_format(self.encoder.text)]
        return any(field_name in text_format.fields for text_format in formats)

    @property
    def reads_prompt(self) -> bool:
        """Whether a prompt makes a difference."""
        return self._reads("prompt")

    @property
    def segments(self) -> int:
        """How many decoder-wide parts one embedding has: 2 for the dual token."""
        return len(self.pooling)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Causal2VecConfig:
        """Check and build a config from the parsed ``config.json``.

        Raises:
            ConfigError: a missing, unknown or wrong key, by its name.
        """
        values = dict(values)
        model_type = values.pop("model_type", None)
        if model_type != MODEL_TYPE:
            raise ConfigError(f"model_type is {model_type!r}, expected {MODEL_TYPE!r}")
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise ConfigError(
                f"format_version is {version!r}, this release reads version {FORMAT_VERSION}"
            )
        for key in ("template", "pooling", "decoder"):
            if values.get(key) is None:
                raise ConfigError(f"{key} is missing")
        for key in ("template", "pooling"):
            if not isinstance(values[key], (list, tuple)):
                raise ConfigError(f"{key} is {values[key]!r}, expected a list")
            values[key] = tuple(values[key])
        values["encoder"] = _section(EncoderConfig, "encoder", values.get("encoder"))
        values["projector"] = _section(ProjectorConfig, "projector", values.get("projector"))
        values["decoder"] = _section(DecoderConfig, "decoder", values["decoder"])
        _check_keys(cls, "", values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        values: dict[str, Any] = {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in ("encoder", "projector", "decoder"):
                value = None if value is None else asdict(value)
            elif spec.name in ("template", "pooling"):
                value = list(value)
            elif spec.name == "prompts":
                value = dict(value)
            elif spec.name == "summary_tokens" and not value:
                continue  # releases that know no summary tokens read the file too
            values[spec.name] = value
        return values

    @classmethod
    def load(cls, directory: str | Path) -> Causal2VecConfig:
        """Read ``config.json`` of a checkpoint directory.

        Raises:
            ConfigError: the file is missing, is not JSON, or a key in it is wrong.
        """
        path = Path(directory) / CONFIG_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a Causal2Vec checkpoint has one") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected a JSON object")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def save(self, directory: str | Path) -> None:
        """Write ``config.json`` into a directory."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (Path(directory) / CONFIG_NAME).write_text(text, encoding="utf-8")


_Section = TypeVar("_Section")


def _section(cls: type[_Section], name: str, values: Any) -> _Section | None:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is {values!r}, expected an object or null")
    _check_keys(cls, f"{name}.", values)
    if cls is ProjectorConfig and "hidden_size" not in values:
        raise ConfigError("projector.hidden_size is missing")
    return cls(**values)


def _check_keys(cls: Any, prefix: str, values: Mapping[str, Any]) -> None:
    known = {spec.name for spec in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown key {prefix}{unknown[0]}; known are {', '.join(sorted(known))}")
