"""Converting a sentence-transformers folder: understand it, copy it, compare the token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2v_engine.errors import CheckpointError, TextError, UnsupportedError
from c2v_engine.model.assemble import MODEL_FILES, writing
from c2v_engine.model.checkpoint import CheckpointDescription, load_transformers_config
from c2v_engine.model.config import (
    CONFIG_NAME,
    AttentionMode,
    Causal2VecConfig,
    DecoderConfig,
)
from c2v_engine.model.decoder_shape import DecoderShape
from c2v_engine.model.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraAdapter
from c2v_engine.model.modules_json import MODULES_NAME, SETTINGS_NAME, save_modules_json
from c2v_engine.model.rope import rope_table
from c2v_engine.model.template import ALL
from c2v_engine.model.weights import INDEX_NAME, WEIGHTS_NAME, WeightFolder
from c2v_engine.runtime.convert.layout import (
    TRANSFORMER_SETTINGS,
    PoolingMode,
    SourceModel,
    read_source,
)
from c2v_engine.runtime.convert.special_tokens import (
    PROBES,
    SpecialEntries,
    find_special_tokens,
    special_entries,
    stock_ids,
)
from c2v_engine.runtime.hub import fetch_checkpoint
from c2v_engine.runtime.tokenization import CheckpointTokenizer, load_fast_tokenizer

_TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
# Files of the source that are not its tokenizer's.
_OTHER_FILES = (
    CONFIG_NAME,
    MODULES_NAME,
    SETTINGS_NAME,
    TRANSFORMER_SETTINGS,
    ADAPTER_CONFIG,
    INDEX_NAME,
    "generation_config.json",
)
# Keys of a config by which a decoder says that it does not attend as its architecture does.
_BIDIRECTIONAL = {"is_causal": False, "use_bidirectional_attention": True}
# A text longer than this costs more to compare than it can tell.
_LONGEST_COMPARED = 8192


@dataclass(frozen=True)
class Conversion:
    """A checkpoint that was made of another model.

    Attributes:
        directory: of the checkpoint.
        description: what the checkpoint says of itself.
        notes: what a reader of the checkpoint may wonder about, a sentence each.
    """

    directory: Path
    description: CheckpointDescription
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What was understood, for people: names and plain values."""
        config, shape = self.description.config, self.description.decoder_shape
        return {
            "decoder": self.description.decoder_config.model_type,
            "dimension": shape.hidden_size * config.segments,
            "template": list(config.template),
            "pooling": list(config.pooling),
            "attention mask": config.attention,
            "normalize": config.normalize,
            "max length": config.max_length,
            "prompts": dict(config.prompts),
            "default prompt": config.default_prompt_name,
            "adapter": config.decoder.adapter,
            "stored dtype": str(self.description.stored_dtype).removeprefix("torch."),
        }


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    pooling: PoolingMode | None = None,
    attention: AttentionMode | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
) -> Conversion:
    """Make a checkpoint of a decoder embedding model in sentence-transformers' layout.

    Its weights are copied as they are; ``docs/convert.md`` says what can be converted.

    Args:
        source: its folder, or the id of a Hub repository.
        output: the directory to write; it must not hold anything yet.
        pooling: ``last-token`` or ``mean``, for a folder of transformers alone.
        attention: ``causal`` or ``bidirectional``; None for what its architecture has, which is
            refused where its config says or may mean otherwise.
        normalize: None for what the source says; one of transformers alone is normalised.
        max_length: None for what the source says.

    Returns:
        The checkpoint, as it describes itself.

    Raises:
        InputError: options that do not fit the source.
        UnsupportedError: a model that no checkpoint can express, by what was found.
        CheckpointError: a file is missing or damaged, or the output holds something already.
        ConfigError: an option's value can not be.
    """
    source, output = str(source), Path(output)
    folder = Path(source) if Path(source).is_dir() else fetch_checkpoint(source)
    model = read_source(folder, pooling)
    weights, adapter = _weight_folders(model.transformer)
    decoder_config = load_transformers_config(weights)
    shape = DecoderShape.from_transformers(decoder_config, str(weights))
    rope_table(decoder_config, shape.head_dim, 1, str(weights))  # refuses what it can not compute
    attention = _attention(weights, attention)
    _refuse_tokenizer_code(model.transformer)
    tokenizer = load_fast_tokenizer(model.transformer)
    special = find_special_tokens(tokenizer, model.transformer)
    entries = special_entries(special, tokenizer, decoder_config, model.transformer)
    text = "{prompt}{text}" if _prompts_fit(model) else "{text}"
    config = Causal2VecConfig(
        template=(*entries.before, text, *entries.after),
        pooling=_pooling(model, entries),
        attention=attention,
        normalize=model.normalize if normalize is None else normalize,
        max_length=_max_length(model, tokenizer, decoder_config, max_length),
        decoder=DecoderConfig(adapter=None if adapter is None else "adapter"),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
    )
    notes = [_naming_note(name, number, tokenizer) for name, number in entries.named.items()]
    if text == "{text}":
        notes.append("the template reads no prompt, which its mean pooling would have to leave out")
    with writing(output):
        _copy_decoder(weights, model.transformer, output / config.decoder.path)
        _name_tokens(output / config.decoder.path, entries.named, tokenizer)
        _settle_attention(output / config.decoder.path, attention)
        if adapter is not None:
            (output / "adapter").mkdir()
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                shutil.copyfile(adapter / name, output / "adapter" / name)
        if model.similarity is not None:
            _write_json(output / SETTINGS_NAME, {"similarity_fn_name": model.similarity})
        config.save(output)
        save_modules_json(config, output)
        description = CheckpointDescription.read(output)
        notes += _compare_tokens(description, tokenizer, model.transformer)
    return Conversion(output, description, tuple(notes))


def _weight_folders(transformer: Path) -> tuple[Path, Path | None]:
    """The folder of the decoder's weights, and that of an adapter on them."""
    path = transformer / ADAPTER_CONFIG
    if not path.exists():
        WeightFolder(transformer)
        return transformer, None
    if any((transformer / name).exists() for name in (WEIGHTS_NAME, INDEX_NAME)):
        raise UnsupportedError(
            f"{path}: stands beside a whole model's weights, so that it is not certain which are "
            "meant; merge the adapter or remove it"
        )
    LoraAdapter(transformer)
    base = _read_object(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{path}: base_model_name_or_path is {base!r}, expected a model")
    folder = Path(base) if Path(base).is_dir() else fetch_checkpoint(base)
    if (folder / ADAPTER_CONFIG).exists():
        raise UnsupportedError(f"{path}: its base model {base} has an adapter itself; merge that")
    WeightFolder(folder)
    return folder, transformer


def _attention(weights: Path, attention: AttentionMode | None) -> AttentionMode:
    """The mask, where the config leaves no doubt about it."""
    if attention is not None:
        return attention
    path = weights / CONFIG_NAME
    values = _read_object(path)
    found = [key for key, value in _BIDIRECTIONAL.items() if values.get(key) is value]
    if found:
        raise UnsupportedError(
            f"{path}: {found[0]} is {json.dumps(values[found[0]])}, which not every release of "
            "transformers heeds: give attention (--attention), bidirectional or causal, as the "
            "model was trained"
        )
    if values.get("auto_map"):
        raise UnsupportedError(
            f"{path}: auto_map names code of the model's own, which may attend in another way "
            "than its architecture: give attention (--attention), bidirectional or causal, if that "
            "is all it changes"
        )
    return "causal"


def _refuse_tokenizer_code(folder: Path) -> None:
    path = folder / _TOKENIZER_CONFIG
    if path.exists() and _read_object(path).get("auto_map"):
        raise UnsupportedError(
            f"{path}: auto_map names code of the tokenizer's own, which is not run: save it as a "
            "plain tokenizer.json"
        )


def _prompts_fit(model: SourceModel) -> bool:
    """Whether the pooling reads a prompt's rows; without prompts it need not."""
    if model.pooling != "mean" or model.include_prompt:
        return True
    named = sorted(name for name, prompt in model.prompts.items() if prompt)
    if named:
        raise UnsupportedError(
            f"{model.transformer}: mean pooling leaves out the prompt's rows (include_prompt is "
            f"false), which no template says, and prompt {named[0]!r} has some"
        )
    return False


def _pooling(model: SourceModel, entries: SpecialEntries) -> tuple[str | int, ...]:
    if model.pooling == "mean":
        return (ALL,)
    if not entries.after:
        raise UnsupportedError(
            f"{model.transformer}: its last token is pooled, but its tokenizer appends none, so "
            "that it is the text's own last one, which no template says; if the model was trained "
            "with an EOS token, let its tokenizer.json append it"
        )
    return (entries.after[-1],) if entries.after.count(entries.after[-1]) == 1 else (-1,)


def _max_length(
    model: SourceModel, tokenizer: Any, decoder_config: Any, max_length: int | None
) -> int:
    """The length as sentence-transformers finds it."""
    if max_length is not None:
        return max_length
    if model.max_seq_length is not None:
        return model.max_seq_length
    positions = getattr(decoder_config, "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or tokenizer.model_max_length))


def _naming_note(name: str, number: int, tokenizer: Any) -> str:
    token = tokenizer.convert_ids_to_tokens(number)
    what = "puts {!r} before" if name == "bos" else "appends {!r} to"
    known = getattr(tokenizer, f"{name}_token")
    return (
        f"the tokenizer {what.format(token)} a text, while its {name}_token is {known!r}: the "
        f"copy in decoder/ names {token!r} as {name}_token, so that <{name}> is that"
    )


def _copy_decoder(weights: Path, tokenizer: Path, target: Path) -> None:
    """Copy a decoder's config and weights, and the tokenizer of a folder that may be another."""
    target.mkdir(parents=True)
    names = [CONFIG_NAME, WEIGHTS_NAME]
    if not (weights / WEIGHTS_NAME).exists():
        shards = _read_object(weights / INDEX_NAME)["weight_map"].values()
        names = [CONFIG_NAME, INDEX_NAME, *sorted(set(shards))]
    for name in names:
        shutil.copyfile(weights / name, target / name)
    for pattern in MODEL_FILES:
        for path in sorted(tokenizer.glob(pattern)):
            if path.suffix != ".safetensors" and path.name not in _OTHER_FILES:
                shutil.copyfile(path, target / path.name)


def _name_tokens(folder: Path, named: Mapping[str, int], tokenizer: Any) -> None:
    """Have a copied tokenizer and config name BOS and EOS as the source's tokenizer puts them."""
    for name, number in named.items():
        token = tokenizer.convert_ids_to_tokens(number)
        _update(folder / _TOKENIZER_CONFIG, {f"{name}_token": token})
        if (folder / _SPECIAL_TOKENS).exists():
            _update(folder / _SPECIAL_TOKENS, {f"{name}_token": token})
        _update(folder / CONFIG_NAME, {f"{name}_token_id": number})


def _settle_attention(folder: Path, attention: AttentionMode) -> None:
    """Drop what the checkpoint's own config says now, and the name of code that is not copied."""
    values = _read_object(folder / CONFIG_NAME)
    dropped = {"auto_map", *(_BIDIRECTIONAL if attention == "causal" else ())}
    if dropped & set(values):
        _write_json(
            folder / CONFIG_NAME,
            {key: value for key, value in values.items() if key not in dropped},
        )


def _compare_tokens(description: CheckpointDescription, stock: Any, folder: Path) -> list[str]:
    """Refuse a checkpoint that does not read texts as its source does.

    Returns:
        A note for each prompt that leaves no room for a text, of which the source keeps nothing.

    Raises:
        UnsupportedError: naming the text and both sequences.
    """
    config = description.config
    ours = CheckpointTokenizer(config, description.directory, description.decoder_config, None)
    prompts = [""]
    if config.reads_prompt:
        prompts += ["query: ", *config.prompts.values()]
    texts = list(PROBES) if config.parsed_template.single_rows else [p for p in PROBES if p]
    if config.max_length <= _LONGEST_COMPARED:
        texts.append("A text that is longer. " * config.max_length)
    notes = []
    for prompt in dict.fromkeys(prompts):
        for text in texts:
            expected = stock_ids(stock, [prompt + text], config.max_length)[0]
            try:
                found = ours([text], prompt)[0].token_ids.tolist()
            except TextError as error:
                notes += [
                    f"prompt {name!r} can not be used: {error.reason}"
                    for name, named in config.prompts.items()
                    if named == prompt
                ]
                break
            if found != expected:
                raise UnsupportedError(
                    f"{folder}: no template says what its tokenizer does: {prompt + text[:40]!r} "
                    f"gives {expected[:8]}... of {len(expected)} tokens there, and "
                    f"{found[:8]}... of {len(found)} by {list(config.template)}"
                )
    return notes


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def _update(path: Path, values: Mapping[str, Any]) -> None:
    _write_json(path, {**(_read_object(path) if path.exists() else {}), **values})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
