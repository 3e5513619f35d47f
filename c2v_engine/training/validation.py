"""Retrieval on held-out texts, during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.evaluation import (
    InformationRetrievalEvaluator,
    SentenceEvaluator,
)

from c2v_engine.errors import InputError
from c2v_engine.training.config import ValidationConfig

METRICS = ("ndcg", "recall", "mrr")
BATCH = 64


class Validation(SentenceEvaluator):  # type: ignore[misc]
    """sentence-transformers' retrieval evaluator, reduced to three metrics by plain names."""

    def __init__(
        self, queries: dict[str, str], corpus: dict[str, str], relevant: dict[str, set[str]]
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {}
        self._data = {"queries": queries, "corpus": corpus, "relevant_docs": relevant}

    def use_prompts(self, query: str, document: str) -> None:
        """Give queries and documents their prompts."""
        self._options = {"query_prompt": query, "corpus_prompt": document}

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Measure a model: nDCG, recall and MRR among the best ten."""
        evaluator = InformationRetrievalEvaluator(
            **self._data,
            **self._options,
            ndcg_at_k=[10],
            mrr_at_k=[10],
            precision_recall_at_k=[10],
            accuracy_at_k=[10],
            map_at_k=[10],
            batch_size=BATCH,
            write_csv=False,
            score_functions={"cosine": model.similarity},
        )
        scores = evaluator.compute_metrices(model)["cosine"]
        return {f"{name}@10": float(scores[f"{name}@k"][10]) for name in METRICS}


def open_validation(config: ValidationConfig) -> Validation:
    """Read what a model is measured on: a BEIR folder, or a file of pairs.

    Raises:
        InputError: it can not be read, by file and row.
    """
    path = Path(config.path)
    if path.is_dir():
        from c2v_engine.evaluation.beir import read_beir

        found = read_beir(path, config.split)
        return Validation(found.queries, found.corpus, found.relevant)
    return _of_pairs(path)


def _of_pairs(path: Path) -> Validation:
    from c2v_engine.jobs.readers.table import read_rows

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
    return Validation(queries, {number: text for text, number in numbers.items()}, relevant)
