"""The packaged default model: what it is made of, what it computes, and that it searches."""

import ast
import hashlib
import json
import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from c2v_engine import Causal2Vec
from c2v_engine.engine import default_model_path
from c2v_engine.reference import Causal2VecReference

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "c2v_mini"
TEXTS = [
    "",
    "Return the sum of a sequence of numbers.",
    "Add up all numbers of a sequence and return the sum.",
    "Open a network connection over TLS and read the certificate.",
    "Grüße, 日本語 🙂 \x00 def f(x): return x**2",
    "word " * 700,
]
ANSWERS = {
    "parse a date from a string": "Convert text in a format such as %Y-%m-%d to a datetime.",
    "compress bytes": "Returns the data compressed with gzip, as a bytes object.",
    "run a command and read its output": "Start a child process and capture its standard output.",
    "sort a list in place": "Order the items of the list ascending; the list itself is modified.",
    "download a web page": "Send an HTTP GET request to the URL and return the response.",
    "copy a folder with everything in it": "Recursively copy a whole directory tree.",
    "pick a random element": "Choose one item of a non-empty sequence by chance.",
    "escape special characters in HTML": "Replace &, < and > by entities that are safe in markup.",
}


@pytest.fixture(scope="module")
def default_engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def results():
    return json.loads((EXAMPLE / "results.json").read_text(encoding="utf-8"))


def test_it_opens_without_a_name_and_agrees_with_the_model_that_was_trained(default_engine):
    """Training uses the reference: DESIGN's bounds hold between it and the engine."""
    expected = Causal2VecReference.from_pretrained(default_model_path()).encode(TEXTS).numpy()
    np.testing.assert_allclose(default_engine.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert default_engine.dimension == 512


def test_in_bfloat16_it_stays_close():
    engine = Causal2Vec.from_pretrained(device="cpu", dtype="bfloat16")
    expected = Causal2VecReference.from_pretrained(default_model_path()).encode(TEXTS).numpy()
    assert (engine.encode(TEXTS) * expected).sum(axis=1).min() >= 0.999


def test_it_has_prompts_for_queries_and_documents(default_engine):
    query, document = (
        default_engine.encode_query(TEXTS[1]),
        default_engine.encode_document(TEXTS[1]),
    )
    assert query @ document < 0.9999
    np.testing.assert_allclose(document, default_engine.encode(TEXTS[1]), rtol=0, atol=1e-5)


def test_it_answers_plain_questions(default_engine):
    """At most one of eight may have another passage first."""
    scores = (
        default_engine.encode_query(list(ANSWERS))
        @ default_engine.encode_document(list(ANSWERS.values())).T
    )
    assert (scores.argmax(axis=1) == np.arange(len(ANSWERS))).sum() >= len(ANSWERS) - 1


def test_it_matches_summaries_with_their_docstrings(default_engine):
    """On text like that it was trained on; random weights find 29% of 300 among the first ten."""
    pairs = []
    for name in ("argparse", "shutil", "statistics", "tarfile", "threading", "email/message"):
        source = Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                if summary and len(rest) > 40:
                    pairs.append((summary, rest))
    assert len(pairs) > 80
    queries, passages = zip(*pairs, strict=True)
    scores = default_engine.encode_query(list(queries)) @ (
        default_engine.encode_document(list(passages)).T
    )
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    assert (ranks < 10).mean() > 0.6


def test_it_is_small_and_stored_in_bfloat16():
    files = [path for path in default_model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    states = [load_file(path) for path in default_model_path().rglob("*.safetensors")]
    values = [value for state in states for value in state.values()]
    assert {value.dtype for value in values} == {torch.bfloat16}
    assert sum(value.numel() for value in values) <= 12_000_000


def test_the_recorded_figures_are_of_the_weights_that_are_shipped(results):
    shipped = {
        path.relative_to(default_model_path()).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in default_model_path().rglob("*.safetensors")
    }
    assert shipped == results["weights"]


def test_it_was_measured_on_enough_and_is_worth_its_place(results):
    assert results["queries"] >= 1000
    assert results["passages"] >= 5000
    recall = {name: scores["recall@10"] for name, scores in results["systems"].items()}
    assert recall["c2v-mini"] > recall["BM25"] - 0.10
    assert recall["c2v-mini"] > recall["untrained"] + 0.30


def test_the_card_says_what_it_is_and_its_measured_figures(results):
    card = (default_model_path() / "README.md").read_text(encoding="utf-8")
    assert "for\ndemonstration and tests" in card
    for name in ("c2v-mini", "BM25"):
        scores = results["systems"][name]
        cells = [scores[m] for m in ("ndcg@10", "recall@10", "recall@100", "mrr@10")]
        row = " | ".join(f"{value:.3f}" for value in cells)
        assert re.search(rf"^\| {re.escape(name)} \| {re.escape(row)} \|$", card, re.M)
    assert "{" not in card
