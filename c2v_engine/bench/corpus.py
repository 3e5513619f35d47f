"""Texts that every machine has: runs of the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from c2v_engine.engine import default_model_path

MODULES = ("argparse", "ast", "difflib", "inspect", "logging/__init__", "tarfile", "turtle")
MEDIAN_TOKENS, SIGMA, SHORTEST, LONGEST = 64, 0.8, 8, 512


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
