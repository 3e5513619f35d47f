"""Shared fixtures: tiny checkpoints and their references, each built once per test session."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from interpreter import request_interpreter

request_interpreter()
# A shell starts what runs beside something else with SIGINT ignored, and programs that are tried
# here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "false")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(Recipe(...))`` gives the directory of a tiny random checkpoint."""
    from checkpoints import Recipe, build_checkpoint

    @functools.cache
    def build(recipe: Recipe) -> Path:
        return build_checkpoint(tmp_path_factory.mktemp(recipe.decoder), recipe)

    return lambda recipe=None: build(recipe or Recipe())


@pytest.fixture(scope="session")
def reference(checkpoint):
    """``reference(Recipe(...))`` gives the checkpoint's stock model, float32, on the CPU."""
    from checkpoints import Recipe

    from c2v_engine.reference import Causal2VecReference

    @functools.cache
    def load(recipe):
        return Causal2VecReference.from_pretrained(checkpoint(recipe))

    return lambda recipe=None: load(recipe or Recipe())


@pytest.fixture(scope="session")
def plain_engine(checkpoint):
    """``engine(Recipe(...), dtype="float32")`` with plain linear layers, as they are on CUDA."""
    from c2v_engine import Causal2Vec
    from c2v_engine.model import linear

    @functools.cache
    def load(recipe, dtype):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "onednn_serves", lambda dtype: False)
            return Causal2Vec.from_pretrained(checkpoint(recipe), device="cpu", dtype=dtype)

    return lambda recipe, dtype="float32": load(recipe, dtype)


@pytest.fixture(scope="session")
def engine(checkpoint):
    """``engine(Recipe(...), dtype="float32")`` gives the checkpoint's engine, on the CPU."""
    from c2v_engine import Causal2Vec

    @functools.cache
    def load(recipe, dtype):
        return Causal2Vec.from_pretrained(checkpoint(recipe), device="cpu", dtype=dtype)

    return lambda recipe, dtype="float32": load(recipe, dtype)
