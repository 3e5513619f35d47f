"""Writing checkpoint directories: copies of one, and new ones of an encoder and a decoder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from c2v_engine.errors import CheckpointError, ConfigError
from c2v_engine.model.checkpoint import load_transformers_config
from c2v_engine.model.config import (
    CONFIG_NAME,
    AttentionMode,
    Causal2VecConfig,
    DecoderConfig,
    EncoderConfig,
    ProjectorActivation,
    ProjectorConfig,
)
from c2v_engine.model.decoder_shape import DecoderShape
from c2v_engine.model.encoder import EncoderShape, check_encoder_length
from c2v_engine.model.lora import LoraAdapter
from c2v_engine.model.methods import (
    DEFAULT_METHOD,
    EXAMPLES_PROMPT,
    IN_CONTEXT,
    Example,
    in_context_prompt,
    method_named,
)
from c2v_engine.model.modules_json import save_modules_json
from c2v_engine.model.projector import PROJECTOR_NAME, projector_shapes
from c2v_engine.model.summary import SUMMARY_NAME, untrained_summary
from c2v_engine.model.template import Template
from c2v_engine.model.weights import WeightFolder

# What a transformers checkpoint folder consists of; nothing else is copied or fetched.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def copy_checkpoint(source: Path, config: Causal2VecConfig, target: Path) -> None:
    """Write a checkpoint's files to another directory.

    Raises:
        CheckpointError: the target holds something already, or can not be written.
    """
    with writing(target):
        _copy_files(source, config, target)


def replace_checkpoint(source: Path, config: Causal2VecConfig, target: Path) -> None:
    """Write a checkpoint's files into a directory that may hold others, or be its own.

    Model files of a checkpoint that is there are removed first.

    Raises:
        CheckpointError: the source holds no weights, or ``modules.json`` of another model is there.
        OSError: a file can not be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    if target.samefile(source):
        config.save(target)
        save_modules_json(config, target)
        return
    if (target / CONFIG_NAME).exists():
        for folder in _folders(Causal2VecConfig.load(target)):
            for path in _model_files(target / folder):
                path.unlink()
    _copy_files(source, config, target)


def _copy_files(source: Path, config: Causal2VecConfig, target: Path) -> None:
    for folder in _folders(config):
        copy_model_files(source / folder, target / folder)
    if config.projector is not None:
        shutil.copyfile(source / PROJECTOR_NAME, target / PROJECTOR_NAME)
    if config.summary_tokens:
        shutil.copyfile(source / SUMMARY_NAME, target / SUMMARY_NAME)
    config.save(target)
    save_modules_json(config, target)


def _folders(config: Causal2VecConfig) -> list[str]:
    """Of a checkpoint: the decoder's, its adapter's, the encoder's, where it has them."""
    encoder = None if config.encoder is None else config.encoder.path
    folders = [config.decoder.path, config.decoder.adapter, encoder]
    return [folder for folder in folders if folder is not None]


def create_checkpoint(
    output: str | Path,
    decoder: str | Path,
    encoder: str | Path | None = None,
    *,
    method: str | None = None,
    template: Sequence[str] | None = None,
    pooling: Sequence[str | int] | None = None,
    attention: AttentionMode | None = None,
    summary_tokens: int | None = None,
    normalize: bool = True,
    max_length: int = 512,
    encoder_options: Mapping[str, Any] | None = None,
    projector_hidden_size: int | None = None,
    projector_activation: ProjectorActivation = "gelu",
    projector_bias: bool = True,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    examples: Sequence[Example] | None = None,
    instruction: str | None = None,
    adapter: str | Path | None = None,
    seed: int = 0,
) -> Path:
    """Assemble a checkpoint from a decoder and, with a contextual token, an encoder.

    The projector's weights and the summary tokens are new, and untrained.

    Args:
        output: the directory to write; it must not hold anything yet.
        decoder: a transformers checkpoint folder (Llama, Mistral, Qwen2 or Qwen3).
        encoder: a transformers checkpoint folder (BERT family); None for templates without
            ``<context>``.
        method: one of ``METHODS``, which stands for a template, its pooling and attention; None
            for ``causal2vec``, or for what the next three say.
        template: the decoder's sequence, in place of a method's.
        pooling: the template entries that make the embedding; likewise.
        attention: ``causal`` or ``bidirectional``; likewise.
        summary_tokens: rows of the template's ``<summary>``; None for the method's.
        normalize: whether embeddings are L2-normalised by default.
        max_length: most rows of the decoder's sequence.
        encoder_options: the encoder's section of the config: ``text``, ``pooling``,
            ``max_length`` (by default what its positions allow, 512 at most), ``overflow``.
        projector_hidden_size: None for the decoder's width.
        projector_activation: of the projector.
        projector_bias: whether it has biases.
        prompts: named prompts.
        default_prompt_name: the one used where a call names none.
        examples: instruction, query and response of each, for the method ``in-context``: they are
            stored as the prompt ``query``, rendered as bge-en-icl does.
        instruction: of the queries that follow the examples; None for the examples' own.
        adapter: a PEFT LoRA adapter folder of the decoder.
        seed: of the projector's weights: normal, of variance 1 / inputs; biases are zero. And of
            the summary tokens: normal, with the mean and variance of the token embeddings.

    Returns:
        The output directory.

    Raises:
        ConfigError: options that do not fit together.
        CheckpointError: a folder is no checkpoint, or the output holds something already.
        UnsupportedError: an architecture that the engine does not implement.
    """
    decoder, output = Path(decoder), Path(output)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed!r}, expected a whole number from 0 to 2^63 - 1")
    encoder = None if encoder is None else Path(encoder)
    chosen = method_named(DEFAULT_METHOD if method is None else method)
    own = {"template": template, "pooling": pooling, "attention": attention}
    for name, value in own.items():
        if method is not None and value is not None:
            raise ConfigError(f"both method and {name} are given, expected only one of them")
    template = chosen.template if template is None else tuple(template)
    pooling = chosen.pooling if pooling is None else tuple(pooling)
    if summary_tokens is None:
        summary_tokens = chosen.summary_tokens
    prompts = _with_examples(prompts or {}, examples, instruction, method)
    has_context = Template(template, pooling, summary_tokens).has_context
    if has_context and encoder is None:
        raise ConfigError("template has <context>, so an encoder must be given")
    if not has_context and (encoder is not None or encoder_options):
        raise ConfigError("template has no <context>, so no encoder can be given, nor its options")
    if not has_context and projector_hidden_size is not None:
        raise ConfigError(
            f"projector_hidden_size is {projector_hidden_size}, but template has no <context>"
        )
    decoder_shape = DecoderShape.from_transformers(load_transformers_config(decoder), str(decoder))
    encoder_shape, encoder_section, projector = None, None, None
    if encoder is not None:
        encoder_config = load_transformers_config(encoder)
        encoder_shape = EncoderShape.from_transformers(encoder_config, str(encoder))
        encoder_section = _encoder_section(encoder_shape, encoder_options or {}, encoder)
        width = (
            decoder_shape.hidden_size if projector_hidden_size is None else projector_hidden_size
        )
        projector = ProjectorConfig(width, projector_activation, projector_bias)
    config = Causal2VecConfig(
        template=template,
        pooling=pooling,
        attention=chosen.attention if attention is None else attention,
        normalize=normalize,
        max_length=max_length,
        encoder=encoder_section,
        projector=projector,
        decoder=DecoderConfig(adapter=None if adapter is None else "adapter"),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        summary_tokens=summary_tokens,
    )
    sources = {config.decoder.path: decoder}
    weights = WeightFolder(decoder)
    if encoder is not None and encoder_section is not None:
        WeightFolder(encoder)
        sources[encoder_section.path] = encoder
    if adapter is not None:
        LoraAdapter(Path(adapter))
        sources["adapter"] = Path(adapter)
    with writing(output):
        for name, folder in sources.items():
            copy_model_files(folder, output / name)
        if projector is not None and encoder_shape is not None:
            sizes = encoder_shape.hidden_size, decoder_shape.hidden_size
            save_file(
                _untrained(projector_shapes(projector, *sizes), seed), output / PROJECTOR_NAME
            )
        if summary_tokens:
            prefix = "model." if "model.embed_tokens.weight" in weights else ""
            shape = decoder_shape.vocab_size, decoder_shape.hidden_size
            table = weights.take(f"{prefix}embed_tokens.weight", shape)
            rows = untrained_summary(table, summary_tokens, seed)
            save_file({"weight": rows}, output / SUMMARY_NAME)
        config.save(output)
        save_modules_json(config, output)
    return output


def _with_examples(
    prompts: Mapping[str, str],
    examples: Sequence[Example] | None,
    instruction: str | None,
    method: str | None,
) -> dict[str, str]:
    """The prompts, and that of the examples."""
    given = "instruction" if examples is None else "examples"
    if examples is None and instruction is None:
        return dict(prompts)
    if method != IN_CONTEXT:
        raise ConfigError(f"{given} can be given with method {IN_CONTEXT!r} only")
    if EXAMPLES_PROMPT in prompts:
        raise ConfigError(
            f"prompts has {EXAMPLES_PROMPT!r}, which {given} would make: leave one of them out"
        )
    return {**prompts, EXAMPLES_PROMPT: in_context_prompt(examples or (), instruction)}


def _encoder_section(
    shape: EncoderShape, options: Mapping[str, Any], folder: Path
) -> EncoderConfig:
    unknown = set(options) - {"text", "pooling", "max_length", "overflow"}
    if unknown:
        raise ConfigError(
            f"encoder_options has {sorted(unknown)[0]!r}, "
            "expected text, pooling, max_length or overflow"
        )
    section = EncoderConfig(**options)
    if "max_length" not in options:
        section = replace(section, max_length=min(section.max_length, shape.max_tokens))
    check_encoder_length(shape, section.max_length, str(folder))
    return section


def _untrained(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        if name.endswith("weight")
        else torch.zeros(shape)
        for name, shape in shapes.items()
    }


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Write into a directory that holds nothing yet; what fails leaves nothing behind.

    Raises:
        CheckpointError: it holds something, can not be made, or can not be written.
    """
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        occupied = any(directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory}: can not be made: {error.strerror}") from None
    if occupied:
        raise CheckpointError(f"{directory}: is not empty; choose another output directory")
    try:
        yield
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if existed:
            directory.mkdir(exist_ok=True)
        if isinstance(error, (OSError, SafetensorError, RuntimeError)):
            raise CheckpointError(f"{directory}: can not be written: {error}") from None
        raise


def copy_model_files(source: Path, target: Path, weights: bool = True) -> None:
    """Copy a transformers checkpoint folder, or all of it but its weights.

    Raises:
        CheckpointError: the source holds no weights, such as one that was deleted after loading.
    """
    files = _model_files(source)
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{source}: holds no weights to copy")
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        if not weights and (".safetensors" in path.name):
            continue
        shutil.copyfile(path, target / path.name)


def _model_files(folder: Path) -> list[Path]:
    return [path for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))]
