"""The figures of a ranking, by sentence-transformers' own code.

A model and BM25 are measured by the same function. Relevance is yes or no, so that with ``rel_i``
in {0, 1} for the passage at rank ``i`` and ``R`` relevant passages::

    nDCG@10   = sum_i rel_i / log2(i + 1), over the same sum of an ideal ranking    (i <= 10)
    Recall@k  = (relevant passages among the first k) / R
    MRR@10    = 1 / (rank of the first relevant passage), 0 if it is not among the first 10

each the mean over queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from c2v_engine.errors import MissingPackageError

if TYPE_CHECKING:
    from c2v_engine.evaluation.beir import RetrievalData
    from c2v_engine.evaluation.rankings import Ranking


@dataclass(frozen=True)
class Scores:
    """Means over queries, in [0, 1].

    Attributes:
        queries: how many.
        ndcg_at_10: normalised discounted cumulative gain of the first 10.
        recall_at_10: part of the relevant passages that are among the first 10.
        recall_at_100: likewise, the first 100.
        mrr_at_10: reciprocal rank of the first relevant passage.
    """

    queries: int
    ndcg_at_10: float
    recall_at_10: float
    recall_at_100: float
    mrr_at_10: float

    def as_dict(self) -> dict[str, float]:
        """The figures by their usual names."""
        return {
            "queries": self.queries,
            "ndcg@10": self.ndcg_at_10,
            "recall@10": self.recall_at_10,
            "recall@100": self.recall_at_100,
            "mrr@10": self.mrr_at_10,
        }


def evaluator_class() -> Any:
    """sentence-transformers' ``InformationRetrievalEvaluator``.

    Raises:
        MissingPackageError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers.sentence_transformer.evaluation import (
            InformationRetrievalEvaluator,
        )
    except ImportError:
        try:  # its place before release 6
            from sentence_transformers.evaluation import InformationRetrievalEvaluator
        except ImportError as error:
            raise MissingPackageError("sentence-transformers", "eval") from error
    return InformationRetrievalEvaluator


def evaluator_options(depth: int) -> dict[str, Any]:
    """How an evaluator is told to compute our figures from rankings of some depth."""
    return {
        "ndcg_at_k": [10],
        "precision_recall_at_k": [10, 100],
        "mrr_at_k": [10],
        "accuracy_at_k": [10],
        "map_at_k": [depth],
        "write_csv": False,
    }


def measure(data: RetrievalData, ranking: Ranking) -> Scores:
    """Measure the ranking of every query of the data.

    Args:
        data: says what is relevant.
        ranking: at least 100 passages a query, or all that a search found.

    Raises:
        MissingPackageError: sentence-transformers is not installed.
    """
    # Rankings come from elsewhere, so the evaluator needs no corpus.
    evaluator = evaluator_class()(data.queries, {}, data.relevant, **evaluator_options(100))
    found = evaluator.compute_metrics(
        [
            [{"corpus_id": passage, "score": score} for passage, score in ranking[query]]
            for query in evaluator.queries_ids
        ]
    )
    return Scores(
        queries=len(evaluator.queries_ids),
        ndcg_at_10=float(found["ndcg@k"][10]),
        recall_at_10=float(found["recall@k"][10]),
        recall_at_100=float(found["recall@k"][100]),
        mrr_at_10=float(found["mrr@k"][10]),
    )
