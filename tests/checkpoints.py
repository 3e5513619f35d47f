"""Tiny random checkpoints: real architectures and tokenizers, written as files in a second or so.

Every weight is randomised, biases and norms too, at a scale where attention, positions and every
part of the model change the embedding: a test against them fails if one of them is left out.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import BertProcessing, ByteLevel, RobertaProcessing, TemplateProcessing
from tokenizers.processors import Sequence as ProcessorSequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from c2v_engine.model.config import Causal2VecConfig, DecoderConfig, EncoderConfig, ProjectorConfig

CONTEXT_FIRST = ("<context>", "{prompt}{text}", "<eos>")
INSTRUCTION_FIRST = ("{prompt}", "<context>", "{text}", "<eos>")
DUAL = ("<context>", "<eos>")
PROMPTS = (("query", "Represent this question, please: "), ("document", ""))

MODULES = ("argparse", "ast", "collections/__init__", "difflib", "logging/__init__", "tarfile")
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint is made of; equal recipes share one directory (see ``conftest.py``)."""

    decoder: str = "llama"
    encoder: str | None = "bert"
    template: tuple[str, ...] = CONTEXT_FIRST
    pooling: tuple[str | int, ...] = DUAL
    attention: str = "causal"
    normalize: bool = True
    max_length: int = 48
    encoder_text: str = "{text}"
    encoder_pooling: str = "mean"
    encoder_max_length: int = 40
    overflow: str = "truncate"
    activation: str = "gelu"
    projector_bias: bool = True
    prompts: tuple[tuple[str, str], ...] = PROMPTS
    default_prompt_name: str | None = None
    rope: str = "default"
    legacy_rope: bool = False  # "rope_theta" and "rope_scaling", as before transformers 5
    tied: bool = False
    head: bool = False  # saved with the LM head, so that names start with "model."
    sharded: bool = False
    storage: str = "float32"
    adapter: str | None = None  # lora, rslora, or head: trained on the model with its LM head
    add_eos_token: bool | None = None
    summary_tokens: int = 0
    seed: int = 0


# --- text and tokenizers ------------------------------------------------------------------------


@functools.cache
def corpus() -> list[str]:
    """Some hundred docstrings of Python's standard library."""
    texts = []
    for module in MODULES:
        source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    return [text for text in texts if text] + [
        "Grüße, naïve café – 日本語のテキスト 🙂",
        "1234 5678",
    ]


def _byte_level_bpe(split: str, specials: list[str], trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=trim_offsets)
    return tokenizer


def _sentencepiece_bpe(prepend_by_normalizer: bool) -> Tokenizer:
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, show_progress=False))
    state = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prepend_by_normalizer:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _word_piece() -> Tokenizer:
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The trainer numbers continuation characters in hash order, so they are named before it runs.
    characters = sorted({c for text in corpus() for c in learner.normalizer.normalize_str(text)})
    named = [f"##{character}" for character in characters if not character.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=specials + named, show_progress=False
    )
    learner.train_from_iterator(corpus(), trainer)
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _unigram(specials: list[str]) -> Tokenizer:
    pieces = json.loads(_sentencepiece_bpe(prepend_by_normalizer=False).to_str())["model"]["vocab"]
    learned = [piece for piece in pieces if piece not in specials and piece[:3] != "<0x"]
    scores = [(piece, -4.0 - 0.01 * rank) for rank, piece in enumerate(learned)]
    vocab = [(piece, 0.0) for piece in specials] + scores
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=specials.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of an architecture, trained on ``corpus``."""
    if name in ("llama", "llama_odd"):
        specials = ["<|begin_of_text|>", "<|end_of_text|>"]
        backend = _byte_level_bpe(LLAMA_3_SPLIT, specials, trim_offsets=False)
        backend.post_processor = ProcessorSequence(
            [
                ByteLevel(trim_offsets=False),
                TemplateProcessing(
                    single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
                ),
            ]
        )
        names = {"bos_token": specials[0], "eos_token": specials[1]}
    elif name.startswith("qwen"):
        backend = _byte_level_bpe(QWEN_SPLIT, ["<|endoftext|>"], trim_offsets=True)
        backend.normalizer = normalizers.NFC()
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    elif name in ("mistral", "llama_2"):
        backend = _sentencepiece_bpe(prepend_by_normalizer=name == "llama_2")
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    elif name == "bert":
        backend = _word_piece()
        names = {
            f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")
        }
    else:
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        if name == "roberta":
            backend = _byte_level_bpe(LLAMA_3_SPLIT, specials, trim_offsets=True)
            backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
        else:
            backend = _unigram(specials)
        names = {
            **{"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"},
            **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
        }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_tokenizer(name: str, directory: Path, add_eos_token: bool | None = None) -> None:
    """Write a tokenizer, and make sure that transformers reads back the same one."""
    tokenizer(name).save_pretrained(directory)
    if add_eos_token is not None:
        path = directory / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**settings, "add_eos_token": add_eos_token}), encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(directory)
    for text in corpus()[-3:]:
        assert loaded(text, add_special_tokens=False) == tokenizer(name)(
            text, add_special_tokens=False
        )


# --- models -------------------------------------------------------------------------------------

ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


def decoder_config(recipe: Recipe) -> Any:
    """The transformers config of a recipe's decoder."""
    settings = {
        "vocab_size": len(tokenizer(recipe.decoder)) + 5,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_theta": 1000.0, **ROPE[recipe.rope]},
        "tie_word_embeddings": recipe.tied,
        "bos_token_id": tokenizer(recipe.decoder).bos_token_id,
        "eos_token_id": tokenizer(recipe.decoder).eos_token_id,
        "pad_token_id": None,
    }
    if recipe.decoder == "llama_odd":
        return LlamaConfig(**{**settings, "head_dim": 20, "attention_bias": True, "mlp_bias": True})
    if recipe.decoder.startswith("llama"):
        return LlamaConfig(**settings)
    if recipe.decoder == "mistral":
        return MistralConfig(**settings, head_dim=16, sliding_window=12)
    if recipe.decoder == "qwen2":
        return Qwen2Config(**settings)
    if recipe.decoder == "qwen2_sliding":  # its second layer alone has a window
        window = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
        return Qwen2Config(**settings, **window)
    assert recipe.decoder in ("qwen3", "qwen3_bias")
    shape = {"hidden_size": 72, "num_hidden_layers": 3, "head_dim": 24}
    return Qwen3Config(**{**settings, **shape}, attention_bias=recipe.decoder == "qwen3_bias")


def encoder_config(name: str) -> Any:
    """The transformers config of an encoder: ``bert``, ``roberta`` or ``xlm_roberta``."""
    settings = {
        "vocab_size": len(tokenizer(name)) + 3,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    }
    if name == "bert":
        return BertConfig(**settings)
    classes = {"roberta": RobertaConfig, "xlm_roberta": XLMRobertaConfig}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return classes[name](**{**settings, **ids, "type_vocab_size": 1})


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter anew: none stays zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.2 * noise)
        elif "embed" in name:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise / math.sqrt(parameter.shape[1]))


def _save_decoder(recipe: Recipe, directory: Path) -> None:
    config = decoder_config(recipe)
    auto_class = AutoModelForCausalLM if recipe.head else AutoModel
    model = auto_class.from_config(config)
    randomise(model, recipe.seed)
    model.to(getattr(torch, recipe.storage))
    size = "60KB" if recipe.sharded else "1GB"
    model.save_pretrained(directory, max_shard_size=size)
    save_tokenizer(recipe.decoder, directory, recipe.add_eos_token)
    if recipe.legacy_rope:
        path = directory / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        rope = values.pop("rope_parameters")
        values["rope_theta"] = rope.pop("rope_theta")
        values["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        path.write_text(json.dumps(values), encoding="utf-8")


def _save_adapter(recipe: Recipe, decoder: Path, directory: Path) -> None:
    from peft import LoraConfig, get_peft_model

    auto_class = AutoModelForCausalLM if recipe.adapter == "head" else AutoModel
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
        use_rslora=recipe.adapter == "rslora",
    )
    model = get_peft_model(auto_class.from_pretrained(decoder, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(recipe.seed + 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.5 * noise / math.sqrt(parameter.shape[1]))
    model.save_pretrained(directory)


def _save_projector(recipe: Recipe, encoder_size: int, decoder_size: int, directory: Path) -> int:
    width = 56
    layers = torch.nn.ModuleDict(
        {
            "linear_1": torch.nn.Linear(encoder_size, width, bias=recipe.projector_bias),
            "linear_2": torch.nn.Linear(width, decoder_size, bias=recipe.projector_bias),
        }
    )
    randomise(layers, recipe.seed + 2)
    storage = getattr(torch, recipe.storage)
    state = {name: tensor.to(storage) for name, tensor in layers.state_dict().items()}
    save_file(state, directory / "projector.safetensors")
    return width


def build_checkpoint(directory: Path, recipe: Recipe) -> Path:
    """Write a recipe's checkpoint into an empty directory and return it."""
    encoder = projector = None
    _save_decoder(recipe, directory / "decoder")
    if recipe.adapter is not None:
        _save_adapter(recipe, directory / "decoder", directory / "adapter")
    if recipe.encoder is not None:
        config = encoder_config(recipe.encoder)
        model = AutoModel.from_config(config)
        randomise(model, recipe.seed + 1)
        model.to(getattr(torch, recipe.storage)).save_pretrained(directory / "encoder")
        save_tokenizer(recipe.encoder, directory / "encoder")
        encoder = EncoderConfig(
            text=recipe.encoder_text,
            pooling=recipe.encoder_pooling,
            max_length=recipe.encoder_max_length,
            overflow=recipe.overflow,
        )
        decoder_size = decoder_config(recipe).hidden_size
        width = _save_projector(recipe, config.hidden_size, decoder_size, directory)
        projector = ProjectorConfig(width, recipe.activation, recipe.projector_bias)
    if recipe.summary_tokens:
        generator = torch.Generator().manual_seed(recipe.seed + 4)
        shape = recipe.summary_tokens, decoder_config(recipe).hidden_size
        rows = (0.5 * torch.randn(shape, generator=generator)).to(getattr(torch, recipe.storage))
        save_file({"weight": rows}, directory / "summary.safetensors")
    Causal2VecConfig(
        template=recipe.template,
        pooling=recipe.pooling,
        attention=recipe.attention,
        normalize=recipe.normalize,
        max_length=recipe.max_length,
        encoder=encoder,
        projector=projector,
        decoder=DecoderConfig(adapter=None if recipe.adapter is None else "adapter"),
        prompts=dict(recipe.prompts),
        default_prompt_name=recipe.default_prompt_name,
        summary_tokens=recipe.summary_tokens,
    ).save(directory)
    return directory
