"""Retrieval on held-out texts, during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from c2v_engine.errors import InputError
from c2v_engine.evaluation.beir import RetrievalData, read_beir
from c2v_engine.evaluation.dense import rank_by_model
from c2v_engine.evaluation.metrics import measure
from c2v_engine.jobs.readers.table import read_rows
from c2v_engine.training.config import ValidationConfig

METRICS = ("ndcg@10", "recall@10", "mrr@10")
DEPTH = 100
BATCH = 64


class Validation(SentenceEvaluator):  # type: ignore[misc]
    """The figures of ``c2v eval`` for the model in training, three of them."""

    def __init__(self, data: RetrievalData) -> None:
        super().__init__()
        self._data = data
        self._prompts: tuple[str, str] = ("", "")

    def use_prompts(self, query: str, document: str) -> None:
        """Give queries and documents their prompts."""
        self._prompts = query, document

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Measure a model: nDCG, recall and MRR among the best ten."""
        options = [{"prompt": prompt, "batch_size": BATCH} for prompt in self._prompts]
        scores = measure(self._data, rank_by_model(model, self._data, DEPTH, *options)).as_dict()
        return {name: scores[name] for name in METRICS}


def open_validation(config: ValidationConfig) -> Validation:
    """Read what a model is measured on: a BEIR folder, or a file of pairs.

    Raises:
        InputError: it can not be read, by file and row.
    """
    path = Path(config.path)
    if path.is_dir():
        return Validation(read_beir(path, config.split))
    return Validation(_of_pairs(path))


def _of_pairs(path: Path) -> RetrievalData:
    numbers: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    asked: dict[str, str] = {}
    for row in read_rows(path, ("query", "positive")):
        texts = [row.values.get(column) for column in ("query", "positive")]
        for column, text in zip(("query", "positive"), texts, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{row.place}: column {column!r} holds no text")
        query, positive = map(str, texts)
        document = numbers.setdefault(positive, f"d{len(numbers)}")
        number = asked.setdefault(query, f"q{len(asked)}")
        queries[number] = query
        relevant.setdefault(number, set()).add(document)
    if not queries:
        raise InputError(f"{path}: holds no row")
    corpus = {number: text for text, number in numbers.items()}
    return RetrievalData(path.name, "", queries, corpus, relevant, kinds={})
