"""Ranking passages by BM25, the measure of every embedding model.

``bm25s`` with its defaults: Lucene's variant, words of two letters or more in lower case, English
stop words taken out, no stemming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import MissingPackageError

if TYPE_CHECKING:
    from c2v_engine.evaluation.beir import RetrievalData
    from c2v_engine.evaluation.rankings import Ranking

METHOD = "lucene"
STOP_WORDS = "en"
K1, B = 1.5, 0.75


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingPackageError("bm25s", "eval") from error
    return bm25s


def bm25_setting() -> dict[str, Any]:
    """How BM25 is computed, for a report."""
    library = f"bm25s {_bm25s().__version__}"
    return {"library": library, "method": METHOD, "k1": K1, "b": B, "stopwords": STOP_WORDS}


def rank_by_bm25(data: RetrievalData, depth: int, *, show_progress: bool = False) -> Ranking:
    """Rank the passages of a corpus for every query; those without a word of it are not ranked.

    Of equal scores the lower id comes first, also where the ranking is cut.

    Args:
        data: queries and corpus.
        depth: passages to keep for a query.
        show_progress: whether bm25s draws its bars on standard error.

    Raises:
        MissingPackageError: bm25s is not installed.
    """
    bm25s = _bm25s()

    def tokenize(texts: list[str], **options: Any) -> Any:
        return bm25s.tokenize(texts, stopwords=STOP_WORDS, show_progress=show_progress, **options)

    tokens = tokenize(list(data.corpus.values()))
    if not tokens.vocab:
        return {query: [] for query in data.queries}
    index = bm25s.BM25(method=METHOD, k1=K1, b=B)
    index.index(tokens, show_progress=show_progress)
    ids = list(data.corpus)
    place = np.empty(len(ids), dtype=np.int64)  # of each passage among the sorted ids
    place[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    ranking: Ranking = {}
    questions = tokenize(list(data.queries.values()), return_ids=False)
    for query, words in zip(data.queries, questions, strict=True):
        scores = index.get_scores_from_ids(index.get_tokens_ids(words))
        rows = _best(scores, place, depth)
        found = scores[rows].tolist()
        ranking[query] = [(ids[row], score) for row, score in zip(rows, found, strict=True)]
    return ranking


def _best(scores: NDArray[Any], place: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
    """The rows of the best positive scores [passages], ties by their places."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > depth:
        last = np.partition(scores[rows], -depth)[-depth]
        rows = rows[scores[rows] >= last]
    return rows[np.lexsort((place[rows], -scores[rows]))][:depth]
