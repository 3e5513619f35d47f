"""Decoder embedding models in sentence-transformers' layout: random weights, files as real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import Recipe, decoder_config, randomise, tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel, TemplateProcessing
from tokenizers.processors import Sequence as ProcessorSequence
from transformers import AutoModel, PreTrainedTokenizerFast

OLD = "sentence_transformers.models."
QUERY = "Instruct: Given a web search query, retrieve relevant passages\nQuery:"


@dataclass(frozen=True)
class Stock:
    """What a model is made of; the defaults are Qwen3-Embedding's."""

    decoder: str = "qwen3"
    single: str = "$A <|endoftext|>"  # what the tokenizer's post-processor makes of a text
    specials: tuple[str, ...] = ("<|endoftext|>", "<|im_end|>")
    names: tuple[tuple[str, str], ...] = (
        ("eos_token", "<|im_end|>"),
        ("pad_token", "<|endoftext|>"),
    )
    padding_side: str = "left"
    modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize")
    path: str = ""  # of the transformer
    pooling: str = "lasttoken"
    prompts: tuple[tuple[str, str], ...] = (("query", QUERY), ("document", ""))
    default_prompt_name: str | None = None
    transformer: tuple[tuple[str, Any], ...] = ()  # of sentence_bert_config.json; none: no file
    tokenizer_settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


QWEN3_EMBEDDING = Stock()
E5_MISTRAL = Stock(
    decoder="mistral",
    single="<s> $A </s>",
    specials=("<s>", "</s>"),
    names=(("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "</s>")),
    prompts=(("web_search_query", QUERY + " "), ("sts_query", "Instruct: similar\nQuery: ")),
    transformer=(("max_seq_length", 60), ("do_lower_case", False)),
    tokenizer_settings={"add_bos_token": True, "add_eos_token": True},
)
MEAN_LLAMA = Stock(
    decoder="llama",
    single="<|begin_of_text|> $A",
    specials=("<|begin_of_text|>", "<|end_of_text|>"),
    names=(("bos_token", "<|begin_of_text|>"), ("eos_token", "<|end_of_text|>"),
           ("pad_token", "<|end_of_text|>")),
    padding_side="right",
    modules=("Transformer", "Pooling"),
    path="0_Transformer",
    pooling="mean",
    prompts=(("query", "query: "), ("passage", "passage: ")),
    default_prompt_name="passage",
    transformer=(("max_seq_length", 33),),
)  # fmt: skip
QWEN2_LAST = Stock(
    decoder="qwen2",
    names=(("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")),
    padding_side="right",
    prompts=(("query", QUERY),),
    default_prompt_name="query",
)
TWO_AT_EACH_END = Stock(
    decoder="qwen2",
    single="<|im_end|> {x} $A <|im_end|> <|endoftext|>",
    specials=("<|endoftext|>", "<|im_end|>", "{x}"),
)


def post_processor(single: str, ids: dict[str, int]) -> Any:
    """A tokenizer's post-processor that adds special tokens."""
    used = [(token, number) for token, number in ids.items() if token in single.split()]
    # A list of pieces, as the string form takes braces and colons for its own.
    template = TemplateProcessing(single=single.split(), special_tokens=used)
    return ProcessorSequence([ByteLevel(trim_offsets=False), template])


def save_tokenizer(stock: Stock, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    backend = Tokenizer.from_str(tokenizer(stock.decoder).backend_tokenizer.to_str())
    backend.add_special_tokens(list(stock.specials))
    ids = {token: backend.token_to_id(token) for token in stock.specials}
    backend.post_processor = post_processor(stock.single, ids)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=stock.padding_side, **dict(stock.names)
    )
    fast.save_pretrained(folder)
    update(folder / "tokenizer_config.json", **stock.tokenizer_settings)


def build(folder: Path, stock: Stock) -> Path:
    """Write a model into a folder that need not be there yet."""
    transformer = folder / stock.path
    transformer.mkdir(parents=True)
    config = decoder_config(Recipe(decoder=stock.decoder, encoder=None))
    model = AutoModel.from_config(config)
    randomise(model, 0)
    model.save_pretrained(transformer)
    update(transformer / "config.json", **stock.config)
    save_tokenizer(stock, transformer)
    paths = {"Transformer": stock.path, "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": paths[name], "type": OLD + name}
        for number, name in enumerate(stock.modules)
    ]
    write(folder / "modules.json", modules)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    modes += ("weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode.removesuffix("_tokens") == stock.pooling
               for mode in modes}  # fmt: skip
    (folder / "1_Pooling").mkdir()
    write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": config.hidden_size, **pooling, "include_prompt": True},
    )
    write(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "2.7.0", "pytorch": "2.1.0"},
            "prompts": dict(stock.prompts),
            "default_prompt_name": stock.default_prompt_name,
            "similarity_fn_name": "cosine",
        },
    )
    if stock.transformer:
        write(transformer / "sentence_bert_config.json", dict(stock.transformer))
    return folder


def write(path: Path, values: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(values), encoding="utf-8")


def update(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    found = {**json.loads(path.read_text(encoding="utf-8")), **values}
    write(path, {key: value for key, value in found.items() if value is not None})
