"""What a sentence-transformers folder says of its model: modules, pooling, length, prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from c2v_engine.errors import CheckpointError, InputError, UnsupportedError
from c2v_engine.model.modules_json import (
    DOCUMENT_PROMPTS,
    MODULE_CLASS,
    MODULES_NAME,
    SETTINGS_NAME,
    read_settings,
)

PoolingMode = Literal["last-token", "mean"]
TRANSFORMER_SETTINGS = "sentence_bert_config.json"
_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_POOLING_MODES: dict[str, PoolingMode] = {"lasttoken": "last-token", "mean": "mean"}
# Keys by which releases before 6 said the mode, a truth value each.
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What the transformer's settings may be beside max_seq_length: all else changes what is computed.
_PLAIN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "do_lower_case": (False,),
    "transformer_task": ("feature-extraction",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ),
    "module_output_name": ("token_embeddings",),
    "tokenizer_name_or_path": (),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), ()),
    **dict.fromkeys(("processing_kwargs", "processor_kwargs", "tokenizer_args"), ({},)),
    **dict.fromkeys(("config_kwargs", "config_args"), ({},)),
}
# Of the model: where and how it is loaded, never what it computes.
_LOADING = ("attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype")


@dataclass(frozen=True)
class SourceModel:
    """A decoder embedding model as sentence-transformers' files describe it.

    Attributes:
        transformer: folder of its transformers checkpoint.
        pooling: of the last hidden states.
        include_prompt: whether mean pooling counts the prompt's rows.
        normalize: whether embeddings are L2-normalised.
        max_seq_length: most tokens, special ones counted; None where only the tokenizer says it.
        prompts: by name.
        default_prompt_name: the prompt of calls that name none.
        similarity: name of the similarity function, None where none is named.
    """

    transformer: Path
    pooling: PoolingMode
    include_prompt: bool
    normalize: bool
    max_seq_length: int | None
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity: str | None


def read_source(folder: Path, pooling: PoolingMode | None) -> SourceModel:
    """Read a folder's JSON files.

    Args:
        folder: of sentence-transformers, or of transformers alone.
        pooling: what a folder of transformers alone does not say.

    Raises:
        InputError: a pooling for a folder that names its own, or none for one that does not.
        UnsupportedError: modules, a pooling or settings that no checkpoint can express.
        CheckpointError: a file is damaged or missing.
    """
    if pooling is not None and pooling not in get_args(PoolingMode):
        raise InputError(f"pooling is {pooling!r}, expected last-token or mean")
    modules = _read_json(folder / MODULES_NAME, list)
    if modules is None:
        if pooling is None:
            raise InputError(
                f"{folder}: has no {MODULES_NAME}, so nothing says how its states are pooled: "
                "give pooling (--pooling), last-token or mean"
            )
        return _with_settings(folder, folder, pooling, include_prompt=True, normalize=True)
    if pooling is not None:
        raise InputError(f"pooling is {pooling!r}, but {folder / MODULES_NAME} names a pooling")
    folders = _module_folders(folder, modules)
    mode, include_prompt = _read_pooling(folders["Pooling"])
    normalize = "Normalize" in folders
    if normalize:
        _check_normalize(folders["Normalize"])
    return _with_settings(folder, folders["Transformer"], mode, include_prompt, normalize)


def _module_folders(folder: Path, modules: list[Any]) -> dict[str, Path]:
    """The folder of each module by its class's name."""
    where = folder / MODULES_NAME
    types = [_type_of(module) for module in modules]
    if types == [MODULE_CLASS]:
        raise InputError(f"{folder}: is a checkpoint of this engine already")
    names = [kind.rpartition(".")[2] for kind in types]
    for kind, name in zip(types, names, strict=True):
        if not kind.startswith("sentence_transformers.") or name not in _MODULES[1]:
            raise UnsupportedError(
                f"{where}: module {kind} can not be converted; "
                "known are Transformer, Pooling and Normalize of sentence_transformers"
            )
    if names not in _MODULES:
        raise UnsupportedError(
            f"{where}: modules are {', '.join(names) or 'none'}, "
            "expected Transformer, Pooling and perhaps Normalize"
        )
    folders = {}
    for name, module in zip(names, modules, strict=True):
        path = PurePosixPath(str(module.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{where}: path {str(path)!r} leads out of the folder")
        folders[name] = folder / path
    return folders


def _type_of(module: Any) -> str:
    return str(module.get("type")) if isinstance(module, dict) else repr(module)


def _read_pooling(folder: Path) -> tuple[PoolingMode, bool]:
    path = folder / "config.json"
    values = _read_json(path, dict)
    if values is None:
        raise CheckpointError(f"{path}: no such file; it says how states are pooled")
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [name for key, name in _LEGACY_POOLING.items() if values.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLING_MODES:
        found = " and ".join(map(str, modes)) if isinstance(modes, list) else repr(modes)
        raise UnsupportedError(
            f"{path}: pooling mode {found} can not be converted, expected lasttoken or mean"
        )
    return _POOLING_MODES[modes[0]], bool(values.get("include_prompt", True))


def _check_normalize(folder: Path) -> None:
    path = folder / "config.json"
    values = _read_json(path, dict) or {}
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedError(f"{path}: {key} is {values[key]!r}, expected sentence_embedding")


def _with_settings(
    folder: Path, transformer: Path, pooling: PoolingMode, include_prompt: bool, normalize: bool
) -> SourceModel:
    settings = read_settings(folder)
    where = folder / SETTINGS_NAME
    if settings.get("model_type") not in (None, "SentenceTransformer"):
        raise UnsupportedError(
            f"{where}: model_type is {settings['model_type']!r}, expected SentenceTransformer"
        )
    if settings.get("truncate_dim") is not None:
        raise UnsupportedError(
            f"{where}: truncate_dim is {settings['truncate_dim']}, which a checkpoint can not say: "
            "remove it, and give truncate_dim with each call"
        )
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict):
        raise CheckpointError(f"{where}: prompts is {prompts!r}, expected names and their texts")
    return SourceModel(
        transformer,
        pooling,
        include_prompt,
        normalize,
        _read_length(transformer),
        _prompts(prompts, default),
        default,
        settings.get("similarity_fn_name"),
    )


def _prompts(prompts: Mapping[str, str | None], default: str | None) -> dict[str, str]:
    """The prompts, and empty ones where queries and documents do not get the default one.

    sentence-transformers has a query and a document prompt in every model, where need be empty.
    """
    known = {name: "" if prompt is None else prompt for name, prompt in prompts.items()}
    if default is not None:
        known.setdefault("query", "")
        if not any(name in known for name in DOCUMENT_PROMPTS):
            known["document"] = ""
    return known


def _read_length(folder: Path) -> int | None:
    """``max_seq_length``, with every setting beside it checked."""
    path = folder / TRANSFORMER_SETTINGS
    values = _read_json(path, dict) or {}
    for key, value in values.items():
        if key in ("max_seq_length", "unpad_inputs") or value is None:
            continue
        if key in ("model_args", "model_kwargs"):
            unknown = sorted(set(value) - set(_LOADING)) if isinstance(value, dict) else [value]
            if unknown:
                raise UnsupportedError(f"{path}: {key} has {unknown[0]!r}, which is not supported")
        elif key == "modality_config" and isinstance(value, dict) and "message" in value:
            raise UnsupportedError(
                f"{path}: the model reads texts through its chat template (modality message), "
                "which is not supported"
            )
        elif value not in _PLAIN_SETTINGS.get(key, ()):
            raise UnsupportedError(f"{path}: {key} is {value!r}, which is not supported")
    length = values.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
        raise CheckpointError(f"{path}: max_seq_length is {length!r}, expected a number")
    return length


def _read_json(path: Path, kind: type) -> Any:
    """A file's content; None where there is no such file.

    Raises:
        CheckpointError: it is not JSON, or of another kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, kind):
        expected = "a list" if kind is list else "an object"
        raise CheckpointError(f"{path}: expected {expected}, found {type(values).__name__}")
    return values
