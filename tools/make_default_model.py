"""Make the embedded default model: a small, untrained, deterministic Causal2Vec checkpoint.

    python tools/make_default_model.py             write c2v_engine/default_model
    python tools/make_default_model.py --check     verify that its weights regenerate bit for bit

Weights come from a seed through arithmetic that is exact on every machine. Tokenizers are trained
on the docstrings of the standard library, which differ between Python releases: ``--check`` trains
them again only under the release that the model's README names.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from c2v_engine.model.config import Causal2VecConfig, EncoderConfig, ProjectorConfig

SEED = 20260
VOCABULARY = 4096
PYTHON = "3.11.7"
TARGET = Path(__file__).resolve().parents[1] / "c2v_engine" / "default_model"

BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"]
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ENCODER: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
DECODER: dict[str, Any] = {
    "architectures": ["LlamaModel"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 352,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}
CONFIG = Causal2VecConfig(
    max_length=512,
    encoder=EncoderConfig(max_length=512),
    projector=ProjectorConfig(hidden_size=256),
    prompts={
        "query": "Instruct: Given a question, retrieve passages that answer it\nQuery: ",
        "document": "",
    },
)


def docstrings() -> Iterator[str]:
    """The docstrings of Python's standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        # Names with an underscore differ between platforms (build settings, generated tables).
        if skipped.intersection(parts) or parts[0].startswith(("_", "config-")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield text


def word_piece(texts: list[str]) -> Tokenizer:
    """A lower-case WordPiece tokenizer as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = {
        character for text in texts for character in tokenizer.normalizer.normalize_str(text)
    }
    # The trainer numbers continuation characters in hash order, so they are named before it runs.
    named = [f"##{character}" for character in sorted(characters) if not character.isspace()]
    trainer = WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=BERT_SPECIALS + named, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trained.add_special_tokens(BERT_SPECIALS)
    trained.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    trained.decoder = decoders.WordPiece()
    return trained


def byte_level(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer as Llama 3 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=LLAMA_SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = LLAMA_SPECIALS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)]),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class Draw:
    """Uniform numbers of a given deviation: exact arithmetic, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.RandomState(seed)

    def __call__(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """Draw a float32 tensor."""
        numbers = self.generator.random_sample(shape) * 2 - 1
        return torch.from_numpy((numbers * (std * math.sqrt(3))).astype(np.float32))


def standard_deviation(name: str, fan_in: int) -> float:
    """How large a weight starts.

    Nearly uniform attention and small steps let an embedding follow the words of its text, so that
    texts with words in common are near each other although nothing is trained.
    """
    if "word_embeddings" in name or "embed_tokens" in name:
        return 1.0
    if "position_embeddings" in name or "token_type_embeddings" in name:
        return 0.02
    gains = {("q_proj", "k_proj", "query", "key"): 0.1, ("v_proj", "o_proj", "value"): 0.5}
    gains |= {("attention.output",): 0.5, ("linear_",): 2.0}
    for parts, gain in gains.items():
        if any(part in name for part in parts):
            return gain / math.sqrt(fan_in)
    return 0.2 / math.sqrt(fan_in)


def initialise(shapes: dict[str, tuple[int, ...]], draw: Draw) -> dict[str, torch.Tensor]:
    """Give every parameter its value, in bfloat16."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            value = torch.zeros(shape)
        elif "norm" in name.lower():
            value = torch.ones(shape)
        else:
            value = draw(shape, standard_deviation(name, shape[-1]))
        if name == "embed_tokens.weight":
            # A small EOS row: what it gathers from the text outweighs what it starts with.
            value[DECODER["eos_token_id"]] *= 0.05
        state[name] = value.to(torch.bfloat16)
    return state


def weights() -> dict[str, dict[str, torch.Tensor]]:
    """Every weight file of the model, by its path."""
    with torch.device("meta"):
        encoder = BertModel(BertConfig(**ENCODER), add_pooling_layer=False)
        decoder = LlamaModel(LlamaConfig(**DECODER))
    width = CONFIG.projector.hidden_size if CONFIG.projector else 0
    projector = {
        "linear_1.weight": (width, ENCODER["hidden_size"]),
        "linear_1.bias": (width,),
        "linear_2.weight": (DECODER["hidden_size"], width),
        "linear_2.bias": (DECODER["hidden_size"],),
    }
    draw = Draw(SEED)
    return {
        "encoder/model.safetensors": initialise(_shapes(encoder), draw),
        "decoder/model.safetensors": initialise(_shapes(decoder), draw),
        "projector.safetensors": initialise(projector, draw),
    }


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write(directory: Path) -> None:
    """Write the whole checkpoint."""
    texts = list(docstrings())
    parts: list[tuple[str, dict[str, Any], Tokenizer, dict[str, str]]] = [
        (
            "encoder",
            ENCODER,
            word_piece(texts),
            {f"{name[1:-1].lower()}_token": name for name in BERT_SPECIALS},
        ),
        (
            "decoder",
            DECODER,
            byte_level(texts),
            {"bos_token": LLAMA_SPECIALS[0], "eos_token": LLAMA_SPECIALS[1]},
        ),
    ]
    for name, config, tokenizer, specials in parts:
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        _write_json(folder / "config.json", config)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **specials}
        _write_json(folder / "tokenizer_config.json", settings)
    for path, state in weights().items():
        save_file(state, directory / path, metadata={"format": "pt"})
        (directory / path).chmod(0o644)  # safetensors leaves its files to their owner alone
    CONFIG.save(directory)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def differing_weights(directory: Path) -> list[str]:
    """What of a written model's weights and config is not what this program makes."""
    differences = []
    for path, state in weights().items():
        shipped = load_file(directory / path)
        if set(shipped) != set(state):
            differences.append(f"{path}: other names")
            continue
        for name, value in state.items():
            same = shipped[name].dtype == value.dtype and torch.equal(
                shipped[name].view(torch.int16), value.view(torch.int16)
            )
            if not same:
                differences.append(f"{path}: {name} differs")
    if Causal2VecConfig.load(directory) != CONFIG:
        differences.append("config.json differs")
    return differences


def check(directory: Path) -> list[str]:
    """Compare a written model with what this program makes; returns the differences."""
    differences = differing_weights(directory)
    if platform.python_version() != PYTHON:
        print(f"tokenizers not compared: trained under Python {PYTHON}")
        return differences
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        for made in sorted(Path(temporary).rglob("*.json")):
            name = made.relative_to(temporary).as_posix()
            if made.read_bytes() != (directory / name).read_bytes():
                differences.append(f"{name} differs")
    return differences


def main() -> int:
    """Write or check the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--directory", type=Path, default=TARGET)
    arguments = parser.parse_args()
    if arguments.check:
        differences = check(arguments.directory)
        print("\n".join(differences) or f"{arguments.directory}: as made from seed {SEED}")
        return 1 if differences else 0
    if platform.python_version() != PYTHON:
        print(f"Python {platform.python_version()}: tokenizers differ from those of {PYTHON}")
    write(arguments.directory)
    files = [path for path in arguments.directory.rglob("*") if path.is_file()]
    print(f"{arguments.directory}: {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
