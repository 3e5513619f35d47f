"""Texts that every machine has: runs of the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from c2v_engine.engine import default_model_path

MODULES = ("argparse", "ast", "difflib", "inspect", "logging/__init__", "tarfile", "turtle")


class Corpus:
    """The docstrings of some modules of the standard library, and where their tokens stand.

    Args:
        tokenizer_file: a ``tokenizer.json`` by which tokens are counted; by default the default
            model's.
    """

    def __init__(self, tokenizer_file: Path | None = None) -> None:
        docstrings: list[str] = []
        for module in MODULES:
            source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    docstrings.append(ast.get_docstring(node) or "")
        self._text = "\n".join(filter(None, docstrings))
        path = tokenizer_file or default_model_path() / "decoder" / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        self._offsets = tokenizer.encode(self._text, add_special_tokens=False).offsets

    def draw(self, tokens: int, generator: np.random.Generator) -> str:
        """A run of so many tokens, from anywhere."""
        start = int(generator.integers(0, len(self._offsets) - tokens))
        return self._text[self._offsets[start][0] : self._offsets[start + tokens - 1][1]]
