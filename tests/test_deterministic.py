"""Deterministic mode: a text's embedding is the same to the bit alone and in any batch."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe, corpus
from recipes import ECHO, MEAN

from c2v_engine import Causal2Vec
from c2v_engine.errors import BackendError
from c2v_engine.model import linear

WORDS = " ".join(corpus()).split()
GENERATOR = np.random.default_rng(7)
TEXTS = ["", "one"] + [
    " ".join(WORDS[start : start + length])
    for start, length in zip(
        GENERATOR.integers(0, len(WORDS) - 60, 40), GENERATOR.integers(1, 60, 40), strict=True
    )
]
TEXTS = list(dict.fromkeys(TEXTS))
COMPOSITIONS = 200  # in all, over two layouts and two dtypes
PROMPT = "A prompt of some length that comes before: "
RECIPES = {
    "dual": Recipe(),
    "instruction-first": Recipe(decoder="qwen3", template=INSTRUCTION_FIRST),
    "roberta-cls": Recipe(encoder="roberta", encoder_pooling="cls"),
    "gelu-tanh": Recipe(activation="gelu_tanh"),
    "mean": MEAN,
    "echo": ECHO,
}


@pytest.fixture(scope="module")
def deterministic(checkpoint):
    @functools.cache
    def load(recipe, dtype="float32", attention="auto", plain=False):
        with pytest.MonkeyPatch.context() as patch:
            if plain:
                patch.setattr(linear, "onednn_serves", lambda dtype: False)
            return Causal2Vec.from_pretrained(
                checkpoint(recipe),
                device="cpu",
                dtype=dtype,
                attention=attention,
                deterministic=True,
            )

    return load


@pytest.fixture(autouse=True)
def threads():
    """Sets the number of threads, one at first: tiny models only wait for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def alone(model, prompt):
    return np.stack([model.encode(text, prompt=prompt) for text in TEXTS])


def composed(model, seed, prompt):
    """A random batch of the texts: which, in which order, how many to a batch; and its vectors."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 25))
    chosen = generator.permutation(len(TEXTS))[:count]
    budget = int(generator.choice([1, 70, 200, 500, 5000]))
    vectors = model.encode([TEXTS[i] for i in chosen], prompt=prompt, batch_tokens=budget)
    return chosen, vectors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dual", "instruction-first"])
def test_random_batches_give_every_text_the_bits_it_has_alone(deterministic, name, dtype):
    model = deterministic(RECIPES[name], dtype)
    prompt = PROMPT if name == "instruction-first" else ""
    expected = alone(model, prompt)
    for seed in range(COMPOSITIONS // 4):
        chosen, vectors = composed(model, seed, prompt)
        assert np.array_equal(vectors, expected[chosen]), seed


@pytest.mark.parametrize("plain", [False, True], ids=["auto", "plain products"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_layout_and_kind_of_product(deterministic, threads, name, plain):
    model = deterministic(RECIPES[name], plain=plain)
    threads(1)
    prompt = PROMPT if model.config.reads_prompt else ""
    expected = alone(model, prompt)
    for seed, count in enumerate((1, 2, 3, 5)):
        threads(count)
        chosen, vectors = composed(model, seed, prompt)
        assert np.array_equal(vectors, expected[chosen]), (seed, count)


@pytest.mark.parametrize("name", ["dual", "instruction-first", "mean"])
def test_attention_by_torch_takes_each_sequence_by_itself(deterministic, name):
    model = deterministic(RECIPES[name], attention="sdpa")
    expected = alone(model, "")
    for seed in range(10):
        chosen, vectors = composed(model, seed, "")
        assert np.array_equal(vectors, expected[chosen]), seed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_vectors_are_those_of_the_default_mode(deterministic, engine, dtype):
    expected = engine(RECIPES["dual"], dtype=dtype).encode(TEXTS)
    actual = deterministic(RECIPES["dual"], dtype).encode(TEXTS)
    if dtype == "float32":
        # Float32 sums in another order, some 1e-7 on a unit vector.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    else:
        assert (actual * expected).sum(axis=1).min() >= 0.999


def test_attention_that_depends_on_the_batch_is_refused(checkpoint, monkeypatch):
    from c2v_engine.model.attention.packed_triton import PackedTritonAttention

    monkeypatch.setattr(PackedTritonAttention, "why_not", classmethod(lambda *_: None))
    with pytest.raises(BackendError, match="'packed_triton' can not be deterministic: it adds"):
        Causal2Vec.from_pretrained(
            checkpoint(Recipe()), device="cpu", attention="packed_triton", deterministic=True
        )
