"""Data in the BEIR layout, and an embedder whose vectors are counts of words."""

from __future__ import annotations

import gzip
import json
from zlib import crc32

import numpy as np

from c2v_engine.evaluation.beir import RetrievalData

CORPUS = [
    {"_id": "d1", "title": "sort", "text": "sorts the list in place"},
    {"_id": "d2", "title": "", "text": "iterate over an open file line by line"},
    {"_id": "d3", "text": "the zen of python"},
    {"_id": "d4", "title": "sorted", "text": "a new list from an iterable"},
]
QUERIES = [
    {"_id": "q1", "text": "sort list", "metadata": {"kind": "symbol", "package": "a"}},
    {"_id": "q2", "text": "file line by line", "metadata": {"kind": "question"}},
    {"_id": "q3", "text": "zen", "metadata": {"kind": "question"}},
    {"_id": "q4", "text": "in another split"},
]
QRELS = [("q1", "d1", 1), ("q1", "d4", 2), ("q2", "d2", 1), ("q2", "d1", 0), ("q3", "d2", 0)]


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def tab_rows(rows):
    return "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in rows)


def write_beir(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS, suffix=""):
    """Write a data set; what is given as a string is written as it is."""
    files = {
        "corpus.jsonl": corpus if isinstance(corpus, str) else json_lines(corpus),
        "queries.jsonl": queries if isinstance(queries, str) else json_lines(queries),
        "qrels/test.tsv": qrels if isinstance(qrels, str) else tab_rows(qrels),
    }
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        data = text.encode()
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    return folder


def random_data(queries=40, passages=300, seed=0):
    """Texts of random words, some relevant passages for each query, three kinds of them."""
    random = np.random.default_rng(seed)

    def texts(prefix, count, words):
        lines = random.integers(0, 60, size=(count, words))
        return {f"{prefix}{i}": " ".join(f"w{n}" for n in line) for i, line in enumerate(lines)}

    corpus = texts("d", passages, 12)
    asked = texts("q", queries, 4)
    ids = list(corpus)
    relevant = {
        key: set(random.choice(ids, size=random.integers(1, 15), replace=False)) for key in asked
    }
    kinds = {key: "abc"[i % 3] for i, key in enumerate(asked)}
    return RetrievalData("random", "test", asked, corpus, relevant, kinds)


class WordCounts:
    """Embeds a text as counts of its words in 64 buckets; a prompt's words are counted too."""

    def __init__(self):
        self.prompts = {"query": "", "other": "python zen "}
        self.calls = []

    def encode_query(self, texts, **options):
        return self._encode("query", texts, **options)

    def encode_document(self, texts, **options):
        return self._encode("document", texts, **options)

    def _encode(self, kind, texts, *, prompt_name=None, show_progress_bar=None, truncate_dim=None):
        self.calls.append((kind, len(texts)))
        rows = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in (self.prompts.get(prompt_name, "") + text).split():
                row[crc32(word.encode()) % 64] += 1
        return rows[:, :truncate_dim]
