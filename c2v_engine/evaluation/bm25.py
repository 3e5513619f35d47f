"""Ranking passages by BM25, the measure of every embedding model.

``bm25s`` with its defaults: Lucene's variant, words of two letters or more in lower case, English
stop words taken out, no stemming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    rows, scores = index.retrieve(
        tokenize(list(data.queries.values()), return_ids=False),
        k=min(depth, len(data.corpus)),
        show_progress=show_progress,
        backend_selection="numpy",
    )
    ids = list(data.corpus)
    return {
        query: [(ids[row], score) for row, score in zip(hits, values, strict=True) if score > 0]
        for query, hits, values in zip(data.queries, rows.tolist(), scores.tolist(), strict=True)
    }
