"""The embedded default model through pytest-benchmark: small, for a quick look at a change.

pytest -o addopts="" benchmarks
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from c2v_engine import Causal2Vec
from c2v_engine.bench.corpus import Corpus
from c2v_engine.bench.workloads import Lengths
from c2v_engine.engine import default_model_path
from c2v_engine.reference import Causal2VecReference


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    corpus = Corpus()
    return [corpus.draw(int(tokens), generator) for tokens in Lengths().draw(64, generator)]


def test_engine_encodes_64_texts(benchmark: BenchmarkFixture, texts: list[str]) -> None:
    engine = Causal2Vec.from_pretrained(device="cpu", dtype="float32")
    embeddings = benchmark(engine.encode, texts, show_progress_bar=False)
    assert embeddings.shape == (64, engine.dimension)


def test_reference_encodes_64_texts(benchmark: BenchmarkFixture, texts: list[str]) -> None:
    reference = Causal2VecReference.from_pretrained(default_model_path())
    embeddings = benchmark(reference.encode, texts, batch_size=32)
    assert embeddings.shape == (64, reference.dimension)
