"""Which of a query's nearest candidates are its hard negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError


@dataclass(frozen=True)
class NegativeRules:
    """How negatives are chosen; the names are those of sentence-transformers' mining.

    Candidates are ranked from 0, the positives of the query left out.

    Attributes:
        num_negatives: most for each pair.
        range_min: the first rank that may be taken.
        range_max: the rank after the last.
        max_score: most that a negative may score.
        min_score: least that it may.
        absolute_margin: by which it scores less than the pair's positive, at least.
        relative_margin: likewise, as a part of the positive's score.
        sampling: ``top`` takes the nearest, ``random`` any.
        seed: of random sampling.

    Raises:
        InputError: they leave nothing to choose.
    """

    num_negatives: int = 1
    range_min: int = 10
    range_max: int = 100
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_negatives < 1:
            raise InputError(f"num_negatives is {self.num_negatives}, expected at least 1")
        if not 0 <= self.range_min <= self.range_max - self.num_negatives:
            raise InputError(
                f"range_min is {self.range_min} and range_max {self.range_max}, expected at least "
                f"{self.num_negatives} ranks between them, from 0"
            )
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise InputError(f"{name} is {value}, expected a number of at least 0")
        if self.sampling not in ("top", "random"):
            raise InputError(f"sampling is {self.sampling!r}, expected 'top' or 'random'")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected at least 0")

    def limits(self, positive_scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """What negatives must stay below or at, float32 [pairs], by the score of each positive."""
        limit = np.full(len(positive_scores), np.inf, dtype=np.float32)
        if self.max_score is not None:
            limit = np.minimum(limit, np.float32(self.max_score))
        if self.absolute_margin is not None:
            limit = np.minimum(limit, positive_scores - np.float32(self.absolute_margin))
        if self.relative_margin is not None:
            # Of the magnitude, so that a score below zero is undercut too.
            margin = np.abs(positive_scores) * np.float32(self.relative_margin)
            limit = np.minimum(limit, positive_scores - margin)
        return limit

    def choose(
        self,
        scores: NDArray[np.float32],
        positive_scores: NDArray[np.float32],
        pairs: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Choose negatives.

        Args:
            scores: float32 [pairs, range_max], of the ranked candidates; -inf where there is none.
            positive_scores: float32 [pairs].
            pairs: int64 [pairs], their numbers, which seed random sampling: what is drawn for a
                pair does not depend on the others.

        Returns:
            Ranks, int64 [pairs, num_negatives], best first and -1 where there is none; and whether
            there was any candidate to choose from, [pairs].
        """
        window = scores[:, self.range_min : self.range_max]
        there = window > -np.inf
        allowed = there & (window <= self.limits(positive_scores)[:, None])
        if self.min_score is not None:
            allowed &= window >= np.float32(self.min_score)
        width = window.shape[1]
        order = np.broadcast_to(np.arange(width, dtype=np.float64), window.shape)
        if self.sampling == "random":
            draws = [np.random.default_rng((self.seed, int(pair))).random(width) for pair in pairs]
            order = np.array(draws).reshape(window.shape)
        order = np.where(allowed, order, np.inf)
        places = np.argsort(order, axis=1, kind="stable")[:, : self.num_negatives]
        taken = np.take_along_axis(allowed, places, axis=1)
        ranks = np.sort(np.where(taken, places + self.range_min, np.iinfo(np.int64).max), axis=1)
        ranks[ranks == np.iinfo(np.int64).max] = -1
        return ranks, np.any(there, axis=1)
