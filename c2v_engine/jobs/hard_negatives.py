"""Hard negatives of all pairs, a block of queries against a block of candidates at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError
from c2v_engine.jobs.distinct import Distinct, TextHashes
from c2v_engine.jobs.negatives import NegativeRules
from c2v_engine.jobs.pairs import PairFile
from c2v_engine.jobs.readers import open_reader
from c2v_engine.jobs.store import VectorStore
from c2v_engine.jobs.topk import TopK

_QUERY_ROWS = 512
_CANDIDATE_ROWS = 8192
_PAIR_ROWS = 4096


@dataclass(frozen=True)
class PairSets:
    """The distinct texts of a file of pairs and of a corpus, as numbers.

    Attributes:
        queries: of the pairs.
        documents: the positives, then the corpus.
        candidate: bool [distinct documents], whether it may be a negative.
        mined: bool [pairs], whether negatives are sought for it.
    """

    queries: Distinct
    documents: Distinct
    candidate: NDArray[np.bool_]
    mined: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """How many pairs."""
        return len(self.mined)

    @property
    def positive(self) -> NDArray[np.int64]:
        """The document of each pair, int64 [pairs]."""
        return self.documents.of_text[: self.rows]

    @classmethod
    def scan(
        cls,
        pairs: PairFile,
        corpus: str | os.PathLike[str] | None = None,
        corpus_column: str | None = None,
    ) -> PairSets:
        """Read all texts once.

        Args:
            pairs: the file; where it has negatives already, a pair that repeats is mined once.
            corpus: a file of candidates, see ``open_reader``; None takes the positives.
            corpus_column: the column with its texts.

        Raises:
            InputError: a row can not be used, or there is none.
        """
        query_hashes, hashes = TextHashes(), TextHashes()
        for pair in pairs.pairs():
            query_hashes.add(pair.query)
            hashes.add(pair.positive)
        queries = Distinct.of(query_hashes.values())
        rows = len(queries.of_text)
        if not rows:
            raise InputError(f"{pairs.path}: no rows: there is no pair in it")
        if corpus is not None:
            with open_reader(corpus, corpus_column) as reader:
                for row, record in enumerate(reader, 1):
                    if not record.text.strip():
                        raise reader.bad_row(
                            row, record.line, "an empty text, expected a candidate"
                        )
                    hashes.add(record.text)
        documents = Distinct.of(hashes.values())
        positive, others = documents.of_text[:rows], documents.of_text[rows:]
        if corpus is not None and not len(others):
            raise InputError(f"{corpus}: no rows: there is no text in it")
        candidate = np.zeros(len(documents), dtype=np.bool_)
        candidate[positive if corpus is None else others] = True
        mined = np.ones(rows, dtype=np.bool_)
        if pairs.has_negatives:  # a row for each old negative of a pair
            both = queries.of_text * len(documents) + positive
            mined[:] = False
            mined[np.unique(both, return_index=True)[1]] = True
        return cls(queries, documents, candidate, mined)


@dataclass(frozen=True)
class Mined:
    """What has been found for every pair.

    Attributes:
        chosen: int64 [pairs, num_negatives], documents, best first and -1 where there is none.
        scores: float32 [pairs, num_negatives], theirs; NaN where there is none.
        positive_scores: float32 [pairs].
        had_candidates: bool [pairs], whether there was any to choose from.
    """

    chosen: NDArray[np.int64]
    scores: NDArray[np.float32]
    positive_scores: NDArray[np.float32]
    had_candidates: NDArray[np.bool_]


def mine_pairs(
    queries: VectorStore,
    documents: VectorStore,
    sets: PairSets,
    rules: NegativeRules,
    report: Callable[[int], None],
) -> Mined:
    """Choose the negatives of all pairs.

    All positives of a query, and a document that is the query itself, are never its negatives and
    have no rank.

    Args:
        queries: the vectors of the distinct ones.
        documents: likewise.
        sets: which belong together.
        rules: which candidates are negatives.
        report: called with the number of queries done, after every block.
    """
    mined = Mined(
        np.full((sets.rows, rules.num_negatives), -1, dtype=np.int64),
        np.full((sets.rows, rules.num_negatives), np.nan, dtype=np.float32),
        _positive_scores(queries, documents, sets),
        np.zeros(sets.rows, dtype=np.bool_),
    )
    order = np.argsort(sets.queries.of_text, kind="stable")
    of_query = sets.queries.of_text[order]
    own = sets.documents.find(sets.queries.hashes)
    for first in range(0, len(queries), _QUERY_ROWS):
        after = min(first + _QUERY_ROWS, len(queries))
        begin, end = np.searchsorted(of_query, [first, after])
        pairs = order[begin:end]
        alike = np.flatnonzero(own[first:after] >= 0)
        owners = np.concatenate([sets.queries.of_text[pairs] - first, alike])
        banned = np.concatenate([sets.positive[pairs], own[first:after][alike]])
        best = TopK(after - first, rules.range_max)
        units = queries.read(slice(first, after))
        _rank(best, units, documents, sets.candidate, owners, banned)
        pairs = pairs[sets.mined[pairs]]
        for start in range(0, len(pairs), _PAIR_ROWS):
            _choose(mined, pairs[start : start + _PAIR_ROWS], sets, first, best, rules)
        report(after)
    return mined


def _positive_scores(
    queries: VectorStore, documents: VectorStore, sets: PairSets
) -> NDArray[np.float32]:
    scores = np.empty(sets.rows, dtype=np.float32)
    for first in range(0, sets.rows, _PAIR_ROWS):
        part = slice(first, first + _PAIR_ROWS)
        of_pairs = queries.read(sets.queries.of_text[part])
        scores[part] = np.einsum("ij,ij->i", of_pairs, documents.read(sets.positive[part]))
    return scores


def _rank(
    best: TopK,
    units: NDArray[np.float32],
    documents: VectorStore,
    candidate: NDArray[np.bool_],
    owners: NDArray[np.int64],
    banned: NDArray[np.int64],
) -> None:
    """Rank the candidates of some queries.

    Args:
        best: takes them.
        units: the queries' unit vectors [queries, dimension].
        documents: all texts that were embedded.
        candidate: bool [documents], which of them are candidates.
        owners: int64 [bans], which query ...
        banned: int64 [bans], ... may not have which document.
    """
    order = np.argsort(banned, kind="stable")
    owners, banned = owners[order], banned[order]
    for first in range(0, len(documents), _CANDIDATE_ROWS):
        after = min(first + _CANDIDATE_ROWS, len(documents))
        here = candidate[first:after]
        if not here.any():
            continue
        scores = units @ documents.read(slice(first, after)).T
        scores[:, ~here] = -np.inf
        begin, end = np.searchsorted(banned, [first, after])
        scores[owners[begin:end], banned[begin:end] - first] = -np.inf
        best.update(scores, first)


def _choose(
    mined: Mined,
    pairs: NDArray[np.int64],
    sets: PairSets,
    first: int,
    best: TopK,
    rules: NegativeRules,
) -> None:
    """Choose for some pairs from what was ranked for the queries from ``first`` on."""
    local = sets.queries.of_text[pairs] - first
    all_scores, all_found = best.result()
    scores, found = all_scores[local], all_found[local]
    ranks, there = rules.choose(scores, mined.positive_scores[pairs], pairs)
    taken, places = ranks >= 0, np.maximum(ranks, 0)
    mined.chosen[pairs] = np.where(taken, np.take_along_axis(found, places, axis=1), -1)
    mined.scores[pairs] = np.where(taken, np.take_along_axis(scores, places, axis=1), np.nan)
    mined.had_candidates[pairs] = there
