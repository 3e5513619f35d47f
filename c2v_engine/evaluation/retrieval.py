"""Evaluating a model on retrieval, beside BM25: what is done, and the report of it."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from c2v_engine.errors import InputError
from c2v_engine.evaluation.bm25 import bm25_setting, rank_by_bm25
from c2v_engine.evaluation.dense import rank_by_model
from c2v_engine.evaluation.metrics import Scores, evaluator_class, measure
from c2v_engine.evaluation.rankings import cut_ranking

if TYPE_CHECKING:
    from c2v_engine.evaluation.beir import RetrievalData
    from c2v_engine.evaluation.dense import Embedder
    from c2v_engine.evaluation.rankings import Ranking

MIN_TOP_K = 100  # Recall@100 needs as many
# Names of prompts as encode_query and encode_document try them.
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated.

    Attributes:
        query_prompt_name: of the model's prompts; None for what ``encode_query`` chooses.
        document_prompt_name: likewise for ``encode_document``.
        truncate_dim: as in ``encode``.
        top_k: passages kept for a query, at least 100.
        bm25: whether BM25 ranks the same passages.
        ignore_identical_ids: whether a passage with the query's own id is taken out of its ranking,
            as BEIR does for data whose queries are passages.
        show_progress: of BM25, on standard error.
    """

    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    truncate_dim: int | None = None
    top_k: int = MIN_TOP_K
    bm25: bool = True
    ignore_identical_ids: bool = False
    show_progress: bool = False

    def __post_init__(self) -> None:
        if self.top_k < MIN_TOP_K:
            raise InputError(
                f"top_k is {self.top_k}, expected at least {MIN_TOP_K}: Recall@{MIN_TOP_K} needs it"
            )

    def encode_options(self, prompt_name: str | None) -> dict[str, Any]:
        """Options of ``encode_query`` or ``encode_document``: those that are set."""
        chosen = {"prompt_name": prompt_name, "truncate_dim": self.truncate_dim}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class SystemResult:
    """How well one system ranks.

    Attributes:
        name: of the model, or ``BM25``.
        scores: over all queries.
        kinds: over the queries of each kind; empty where the data have none.
        setting: how it ranks.
        ranking: what it ranked.
    """

    name: str
    scores: Scores
    kinds: dict[str, Scores]
    setting: dict[str, Any]
    ranking: Ranking = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Its figures as JSON holds them, without the ranking."""
        return {
            "name": self.name,
            "setting": self.setting,
            **self.scores.as_dict(),
            "kinds": {kind: scores.as_dict() for kind, scores in self.kinds.items()},
        }


@dataclass(frozen=True)
class RetrievalReport:
    """The evaluation of a model, and of BM25, on one data set.

    Attributes:
        data: its name.
        split: of its qrels.
        queries: evaluated.
        passages: in the corpus.
        relevant: pairs of a query and a relevant passage.
        left_out: queries of the split that have no relevant passage.
        options: what was asked for.
        systems: the model first.
    """

    data: str
    split: str
    queries: int
    passages: int
    relevant: int
    left_out: int
    options: EvaluationOptions
    systems: tuple[SystemResult, ...]

    @property
    def model(self) -> SystemResult:
        """The model's result."""
        return self.systems[0]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "data": self.data,
            "split": self.split,
            "queries": self.queries,
            "passages": self.passages,
            "relevant": self.relevant,
            "left_out": self.left_out,
            "top_k": self.options.top_k,
            "ignore_identical_ids": self.options.ignore_identical_ids,
            "systems": [system.as_dict() for system in self.systems],
        }


def evaluate_retrieval(
    model: Embedder,
    data: RetrievalData,
    options: EvaluationOptions | None = None,
    *,
    watch: AbstractContextManager[Any] | None = None,
) -> RetrievalReport:
    """Rank a corpus for every query by a model and by BM25, and measure both.

    Args:
        model: a ``Causal2Vec``, or anything with ``encode_query`` and ``encode_document``.
        data: queries, corpus and relevant passages.
        options: None for the defaults.
        watch: entered while the model embeds, to show its progress.

    Raises:
        InputError: a text that can not be embedded, or options that can not be.
        MissingPackageError: sentence-transformers or bm25s is not installed.
    """
    options = options or EvaluationOptions()
    evaluator_class()  # what is missing is said before anything is computed
    others = []
    if options.bm25:
        found = rank_by_bm25(data, _depth(options), show_progress=options.show_progress)
        others.append(_result("BM25", data, _cut(found, options), bm25_setting()))
    with watch or contextlib.nullcontext():
        ranking = rank_by_model(
            model,
            data,
            _depth(options),
            options.encode_options(options.query_prompt_name),
            options.encode_options(options.document_prompt_name),
        )
    setting = _model_setting(model, options)
    result = _result(_model_name(model), data, _cut(ranking, options), setting)
    return RetrievalReport(
        data=data.name,
        split=data.split,
        queries=len(data.queries),
        passages=len(data.corpus),
        relevant=sum(map(len, data.relevant.values())),
        left_out=data.left_out,
        options=options,
        systems=(result, *others),
    )


def _depth(options: EvaluationOptions) -> int:
    return options.top_k + options.ignore_identical_ids


def _cut(ranking: Ranking, options: EvaluationOptions) -> Ranking:
    return cut_ranking(ranking, options.top_k, ignore_identical_ids=options.ignore_identical_ids)


def _result(
    name: str, data: RetrievalData, ranking: Ranking, setting: dict[str, Any]
) -> SystemResult:
    kinds = {kind: measure(data.of_kind(kind), ranking) for kind in data.kind_names()}
    return SystemResult(name, measure(data, ranking), kinds, setting, ranking)


def _model_name(model: Embedder) -> str:
    return str(getattr(model, "name", type(model).__name__))


def _model_setting(model: Embedder, options: EvaluationOptions) -> dict[str, Any]:
    info = getattr(model, "info", None)
    about = info() if callable(info) else None
    return {
        "similarity": "cosine",
        "query_prompt": _prompt(model, about, options.query_prompt_name, QUERY_PROMPTS),
        "document_prompt": _prompt(model, about, options.document_prompt_name, DOCUMENT_PROMPTS),
        "truncate_dim": options.truncate_dim,
        "model": about,
    }


def _prompt(
    model: Embedder, about: dict[str, Any] | None, given: str | None, tried: tuple[str, ...]
) -> dict[str, Any] | None:
    """The prompt that ``encode_query`` or ``encode_document`` takes; None where there is none."""
    prompts: dict[str, str] = getattr(model, "prompts", None) or {}
    default = (about or {}).get("default prompt", getattr(model, "default_prompt_name", None))
    name = given or next((name for name in tried if name in prompts), default)
    return None if name is None else {"name": name, "text": prompts.get(name)}
