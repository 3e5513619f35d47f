"""What the encode benchmarks run on: texts of log-normal length and a checkpoint of real size."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from c2v_engine.engine import default_model_path
from c2v_engine.model.config import Causal2VecConfig, EncoderConfig, ProjectorConfig

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("argparse", "ast", "difflib", "inspect", "logging/__init__", "tarfile", "turtle")
MEDIAN_TOKENS, SIGMA, SHORTEST, LONGEST = 64, 0.8, 8, 512


def git_commit() -> str:
    """The commit that is measured, with a mark where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Runs of the standard library's docstrings, of log-normal length in decoder tokens."""
    generator = np.random.default_rng(seed)
    lengths = log_normal_lengths(count, generator)
    corpus = Corpus()
    return [corpus.draw(int(length), generator) for length in lengths]


def log_normal_lengths(count: int, generator: np.random.Generator) -> np.ndarray:
    """Lengths in tokens, int ``[count]``."""
    drawn = np.exp(generator.normal(np.log(MEDIAN_TOKENS), SIGMA, count))
    lengths: np.ndarray = drawn.round().clip(SHORTEST, LONGEST).astype(int)
    return lengths


class Corpus:
    """The docstrings of some modules of the standard library, and where their tokens stand."""

    def __init__(self) -> None:
        docstrings: list[str] = []
        for module in MODULES:
            source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    docstrings.append(ast.get_docstring(node) or "")
        self._text = "\n".join(filter(None, docstrings))
        tokenizer = Tokenizer.from_file(str(default_model_path() / "decoder" / "tokenizer.json"))
        self._offsets = tokenizer.encode(self._text, add_special_tokens=False).offsets

    def draw(self, tokens: int, generator: np.random.Generator) -> str:
        """A run of so many tokens, from anywhere."""
        start = int(generator.integers(0, len(self._offsets) - tokens))
        return self._text[self._offsets[start][0] : self._offsets[start + tokens - 1][1]]


def make_checkpoint(directory: Path) -> Path:
    """Write a random checkpoint, once: BERT-base (110 M) before a Llama of 130 M, in bfloat16."""
    from transformers import AutoModel, BertConfig, LlamaConfig

    if (directory / "config.json").is_file():
        return directory
    decoder = LlamaConfig(
        vocab_size=32768,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    for name, config in (("encoder", BertConfig()), ("decoder", decoder)):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(directory / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(default_model_path() / name / file, directory / name / file)
    weights = {
        "linear_1.weight": torch.randn(2048, 768) / 768**0.5,
        "linear_1.bias": torch.zeros(2048),
        "linear_2.weight": torch.randn(768, 2048) / 2048**0.5,
        "linear_2.bias": torch.zeros(768),
    }
    state = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(state, directory / "projector.safetensors")
    Causal2VecConfig(encoder=EncoderConfig(), projector=ProjectorConfig(2048)).save(directory)
    return directory
