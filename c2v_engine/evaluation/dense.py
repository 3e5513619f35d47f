"""Ranking passages by the cosine of their embeddings, exactly.

sentence-transformers' evaluator walks over the corpus in chunks: it asks for the embeddings of one,
compares all queries with it, and keeps the best passages so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from c2v_engine.errors import InputError, TextError
from c2v_engine.evaluation.metrics import evaluator_class, evaluator_options

if TYPE_CHECKING:
    import torch

    from c2v_engine.evaluation.beir import RetrievalData
    from c2v_engine.evaluation.rankings import Ranking

# A chunk's embeddings and the scores of all queries with it stay well under a gigabyte.
MAX_CHUNK_PASSAGES = 16_384
MAX_CHUNK_SCORES = 16_000_000


class Embedder(Protocol):
    """Anything that embeds queries and documents: a ``Causal2Vec``, a ``SentenceTransformer``."""

    @property
    def encode_query(self) -> Callable[..., Any]:
        """Embeds a list of queries: float ``[texts, dimensions]``."""
        ...

    @property
    def encode_document(self) -> Callable[..., Any]:
        """Embeds a list of documents, likewise."""
        ...


def rank_by_model(
    model: Embedder,
    data: RetrievalData,
    depth: int,
    query_options: dict[str, Any] | None = None,
    document_options: dict[str, Any] | None = None,
) -> Ranking:
    """Rank the passages of a corpus for every query.

    Args:
        model: embeds them.
        data: queries and corpus.
        depth: passages to keep for a query.
        query_options: for ``encode_query``, ``prompt_name`` for one.
        document_options: for ``encode_document``.

    Raises:
        InputError: a text that can not be embedded, named by its id.
        MissingPackageError: sentence-transformers is not installed.
    """
    evaluator = _ranking_evaluator(data, depth)
    evaluator(
        _EvaluatedModel(
            _Embedding(model.encode_query, query_options or {}, "query", evaluator.queries_ids),
            _Embedding(
                model.encode_document, document_options or {}, "passage", evaluator.corpus_ids
            ),
        )
    )
    ranking: Ranking = evaluator.ranking
    return ranking


def _ranking_evaluator(data: RetrievalData, depth: int) -> Any:
    """An evaluator that keeps what it ranked."""
    from sentence_transformers.util import cos_sim

    class RankingEvaluator(evaluator_class()):  # type: ignore[misc]
        def compute_metrics(self, queries_result_list: Any) -> Any:
            self.ranking = {
                query: sorted(
                    ((hit["corpus_id"], hit["score"]) for hit in hits),
                    key=lambda hit: (-hit[1], hit[0]),
                )
                for query, hits in zip(self.queries_ids, queries_result_list, strict=True)
            }
            return super().compute_metrics(queries_result_list)

        def store_metrics_in_model_card_data(self, *arguments: Any) -> None:
            """There is no model card."""

    chunk = MAX_CHUNK_SCORES // len(data.queries)
    return RankingEvaluator(
        data.queries,
        data.corpus,
        data.relevant,
        corpus_chunk_size=max(1, min(MAX_CHUNK_PASSAGES, chunk)),
        score_functions={"cosine": cos_sim},
        **evaluator_options(depth),
    )


class _Embedding:
    """One of a model's two ways to embed, called with one chunk of texts after the other.

    Args:
        encode: embeds a list of texts.
        options: for ``encode``.
        what: the texts are, for messages.
        ids: of all texts that will come, in order.
    """

    def __init__(
        self, encode: Callable[..., Any], options: dict[str, Any], what: str, ids: Sequence[str]
    ) -> None:
        self._encode = encode
        self._options = options
        self._what = what
        self._ids = ids
        self._done = 0

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Float32 ``[texts, dimensions]``."""
        import numpy as np
        import torch

        try:
            embeddings = self._encode(list(texts), show_progress_bar=False, **self._options)
        except TextError as error:
            key = self._ids[self._done + error.row]
            raise InputError(f"{self._what} {key!r}: {error.reason}") from error
        self._done += len(texts)
        return torch.from_numpy(np.asarray(embeddings, dtype=np.float32))


class _EvaluatedModel:
    """A model as the evaluator calls it; our options stand in place of its own."""

    def __init__(self, queries: _Embedding, documents: _Embedding) -> None:
        self._queries = queries
        self._documents = documents

    def encode_query(self, sentences: Sequence[str], **options: Any) -> torch.Tensor:
        return self._queries(sentences)

    def encode_document(self, sentences: Sequence[str], **options: Any) -> torch.Tensor:
        return self._documents(sentences)
