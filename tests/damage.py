"""Spoiling a copy of a good checkpoint, and stating how the spoilt one must be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from c2v_engine import Causal2Vec
from c2v_engine.errors import C2VError

REMOVED = object()
Tensors = dict[str, torch.Tensor]


def copy(source: Path, target: Path) -> Path:
    """A copy of a checkpoint that may be spoilt."""
    return shutil.copytree(source, target / "model")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; ``REMOVED`` takes one away."""
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in values.items() if value is not REMOVED}
    path.write_text(json.dumps(kept), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Change the tensors of a file, in place or by a new dictionary."""
    tensors = load_file(path)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path)


def open_engine(path: Path, **options: Any) -> Causal2Vec:
    """An engine on the CPU in float32."""
    return Causal2Vec.from_pretrained(path, device="cpu", **{"dtype": "float32", **options})


def assert_refused(
    what: Callable[[], object], *words: str, error: type[Exception] = C2VError
) -> None:
    """``what`` raises a ``ValueError`` of ours, in one line that holds all words."""
    with pytest.raises(error) as caught:
        what()
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, C2VError)
    assert "\n" not in message
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"{missing} not in: {message}"
