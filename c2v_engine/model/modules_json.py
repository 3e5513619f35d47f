"""What sentence-transformers reads of a checkpoint directory, so that it opens it as its own.

``modules.json`` names the class that computes, which is the engine's, and
``config_sentence_transformers.json`` the prompts. The engine reads neither, and neither is part of
a checkpoint's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from c2v_engine.errors import CheckpointError, OutputError
from c2v_engine.model.config import Causal2VecConfig

MODULES_NAME = "modules.json"
SETTINGS_NAME = "config_sentence_transformers.json"
MODULE_CLASS = "c2v_engine.integrations.sentence_transformers.Causal2VecModule"
# Names by which sentence-transformers looks for a document's prompt, in its order.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def sentence_transformers_prompts(config: Causal2VecConfig) -> dict[str, str]:
    """The checkpoint's prompts, and those that queries and documents get without one of their own.

    sentence-transformers gives every model a ``query`` and a ``document`` prompt, empty ones where
    it is told none; the engine takes the default prompt then.
    """
    default = config.default_prompt_name
    chosen = {"query": ("query",), "document": DOCUMENT_PROMPTS}
    prompts = dict(config.prompts)
    for kind, names in chosen.items():
        known = [config.prompts[name] for name in (*names, default or "") if name in config.prompts]
        prompts.setdefault(kind, known[0] if known else "")
    return prompts


def save_modules_json(config: Causal2VecConfig, directory: Path) -> list[Path]:
    """Write both files into a checkpoint directory; what else its settings hold stays.

    Args:
        config: the checkpoint's.
        directory: of the checkpoint.

    Returns:
        The files written.

    Raises:
        CheckpointError: ``modules.json`` is there and names other modules, or is damaged.
        OSError: a file can not be written.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": MODULE_CLASS}
    modules_path, settings_path = directory / MODULES_NAME, directory / SETTINGS_NAME
    found = _read(modules_path, [])
    if found and [one.get("type") for one in found] != [MODULE_CLASS]:
        raise CheckpointError(
            f"{modules_path}: names other modules than {MODULE_CLASS}; remove it first"
        )
    settings = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        **read_settings(directory),
        "prompts": sentence_transformers_prompts(config),
        "default_prompt_name": config.default_prompt_name,
    }
    _write(modules_path, [module])
    _write(settings_path, settings)
    return [modules_path, settings_path]


def config_with_settings(config: Causal2VecConfig, settings: Mapping[str, Any]) -> Causal2VecConfig:
    """A checkpoint's config with the prompts of sentence-transformers' settings.

    Those that stand there for want of others leave it as it is.

    Raises:
        ConfigError: a prompt is not text.
    """
    ours = sentence_transformers_prompts(config), config.default_prompt_name
    theirs = settings.get("prompts", ours[0]), settings.get("default_prompt_name", ours[1])
    if theirs == ours:
        return config
    return replace(config, prompts=theirs[0], default_prompt_name=theirs[1])


def export_sentence_transformers(directory: str | Path) -> list[Path]:
    """Make ``SentenceTransformer`` open a checkpoint directory that was written without its files.

    Those that are there are written anew, which brings the prompts up to date with ``config.json``.

    Returns:
        The files written.

    Raises:
        ConfigError: ``config.json`` is missing or wrong.
        CheckpointError: the directory is another model of sentence-transformers.
        OutputError: a file can not be written.
    """
    directory = Path(directory)
    try:
        return save_modules_json(Causal2VecConfig.load(directory), directory)
    except OSError as error:
        raise OutputError(f"{directory}: can not be written: {error.strerror}") from None


def read_settings(directory: Path) -> dict[str, Any]:
    """What ``config_sentence_transformers.json`` holds; nothing where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    settings: dict[str, Any] = _read(directory / SETTINGS_NAME, {})
    return settings


def names_this_engine(directory: Path) -> bool:
    """Whether ``modules.json`` names the engine's class; where there is none it does not.

    Raises:
        CheckpointError: it is damaged.
    """
    return [one.get("type") for one in _read(directory / MODULES_NAME, [])] == [MODULE_CLASS]


def _read(path: Path, missing: Any) -> Any:
    """A file's content, of the type of what stands for one that is missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}; remove it first") from None
    items = found if isinstance(missing, list) else [found]
    if not isinstance(found, type(missing)) or not all(isinstance(one, dict) for one in items):
        raise CheckpointError(f"{path}: not what sentence-transformers reads; remove it first")
    return found


def _write(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
