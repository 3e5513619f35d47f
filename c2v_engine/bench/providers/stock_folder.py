"""A checkpoint's decoder as a folder of sentence-transformers, of its stock modules alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from c2v_engine.bench.models.source import ModelSource
from c2v_engine.bench.providers.base import UnusableError
from c2v_engine.bench.providers.forms import LAST_TOKEN
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.runtime.tokenization import load_fast_tokenizer, plain_backend, special_id

__all__ = ["no_stock_folder", "write_stock_folder"]

MODULES = {
    "": "sentence_transformers.models.Transformer",
    "1_Pooling": "sentence_transformers.models.Pooling",
    "2_Normalize": "sentence_transformers.models.Normalize",
}


def pooling_of(config: Causal2VecConfig) -> str | None:
    """The pooling of sentence-transformers that a config's is; None where none is."""
    entries = config.parsed_template.entries
    if (config.template, config.pooling, config.attention) == LAST_TOKEN:
        return "lasttoken"
    single = len(entries) == 1 and entries[0].format is not None
    return "mean" if single and config.attention == "causal" else None


def no_stock_folder(config: Causal2VecConfig) -> str:
    """Why a config is no folder of stock modules; empty where it is one."""
    if pooling_of(config) is None:
        return f"has no stock module for the template {list(config.template)}"
    if config.decoder.adapter is not None:
        return "is given no adapter here"
    return "" if config.normalize else "is written for normalised embeddings"


def write_stock_folder(source: ModelSource, folder: Path) -> None:
    """Write what ``SentenceTransformer`` opens by itself; the weights are links.

    Args:
        source: of a last-token or mean checkpoint.
        folder: is there, and empty.

    Raises:
        UnusableError: another template, or weights that are not stored.
    """
    config = source.description.config
    why_not = no_stock_folder(config)
    if why_not:
        raise UnusableError(f"sentence-transformers {why_not}")
    decoder = source.stored.resolve() / config.decoder.path
    for path in decoder.iterdir():
        if path.name == "config.json" or ".safetensors" in path.name:
            (folder / path.name).symlink_to(path)
    write_tokenizer(source, decoder, folder)
    for name in filter(None, MODULES):
        (folder / name).mkdir()
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(MODULES.items())
    ]
    pooling = {
        "word_embedding_dimension": source.description.decoder_shape.hidden_size,
        "pooling_mode_mean_tokens": pooling_of(config) == "mean",
        "pooling_mode_lasttoken": pooling_of(config) == "lasttoken",
        "pooling_mode_cls_token": False,
        "include_prompt": True,
    }
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.max_length, "do_lower_case": False},
    )


def write_tokenizer(source: ModelSource, decoder: Path, folder: Path) -> None:
    """Write the decoder's tokenizer, which ends a text by itself where the template does.

    Nothing else is added to a text, whatever the tokenizer did before.
    """
    fast = load_fast_tokenizer(decoder)
    backend = plain_backend(fast)
    ends = pooling_of(source.description.config) == "lasttoken"
    eos_id = special_id("eos", fast, source.description.decoder_config, decoder) if ends else None
    eos = None if eos_id is None else backend.id_to_token(eos_id)
    backend.post_processor = TemplateProcessing(
        single="$A" if eos is None else f"$A {eos}",
        special_tokens=[] if eos is None else [(eos, eos_id)],
    )
    backend.save(str(folder / "tokenizer.json"))
    # Padding is masked: any token will do.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.description.config.max_length,
        "pad_token": backend.id_to_token(0) if eos is None else eos,
        "padding_side": "right",
    }
    write_json(
        folder / "tokenizer_config.json",
        settings if eos is None else {**settings, "eos_token": eos},
    )


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
