"""The embedded default model: what it is made of, and that it can be made again."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from c2v_engine import Causal2Vec
from c2v_engine.engine import default_model_path
from c2v_engine.reference import Causal2VecReference

TOOLS = Path(__file__).resolve().parents[1] / "tools"
TEXTS = [
    "",
    "Return the sum of a sequence of numbers.",
    "Add up all numbers of a sequence and return the sum.",
    "Open a network connection over TLS and read the certificate.",
]


@pytest.fixture(scope="module")
def default_engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


def test_it_opens_without_a_name_and_agrees_with_the_reference(default_engine):
    expected = Causal2VecReference.from_pretrained(default_model_path()).encode(TEXTS).numpy()
    np.testing.assert_allclose(default_engine.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert default_engine.dimension == 256


def test_it_has_prompts_for_queries_and_documents(default_engine):
    query, document = (
        default_engine.encode_query(TEXTS[1]),
        default_engine.encode_document(TEXTS[1]),
    )
    assert query @ document < 0.999
    np.testing.assert_allclose(document, default_engine.encode(TEXTS[1]), rtol=0, atol=1e-5)


def test_texts_that_share_words_are_nearer_than_texts_that_do_not(default_engine):
    _, first, second, other = default_engine.encode(TEXTS)
    assert first @ second > first @ other + 0.1


def test_it_is_small_stored_in_bfloat16_and_says_that_it_is_untrained():
    files = [path for path in default_model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    for path in default_model_path().rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}
    assert "untrained" in (default_model_path() / "README.md").read_text(encoding="utf-8")


def test_its_weights_and_config_regenerate_bit_for_bit(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delitem(sys.modules, "make_default_model", raising=False)
    import make_default_model

    assert make_default_model.differing_weights(default_model_path()) == []
