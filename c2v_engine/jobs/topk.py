"""The best rows of an index for every question, kept while its blocks go by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Up to so many candidates for each place they are sorted at once; of more, a partition comes first.
_SORTED_AT_ONCE = 4


class TopK:
    """A running top-k: the highest scores first, of equal scores the lowest row first.

    It holds ``questions x k`` scores and rows, however many blocks go by.

    Args:
        questions: how many.
        k: best rows kept for each.
    """

    def __init__(self, questions: int, k: int) -> None:
        self._k = k
        self._scores = np.full((questions, k), -np.inf, dtype=np.float32)
        self._rows = np.full((questions, k), -1, dtype=np.int64)

    def update(self, scores: NDArray[np.float32], first: int) -> None:
        """Take the scores of the next rows.

        Args:
            scores: float32 [questions, rows]; -inf is never kept.
            first: the number of the first of these rows; blocks come in the order of their rows.
        """
        questions, rows = scores.shape
        if not rows or not questions or not self._k:
            return
        # A later row that only equals the last one kept loses to it.
        better = scores > self._scores[:, -1:]
        if rows > self._k and np.count_nonzero(better) > _SORTED_AT_ONCE * questions * self._k:
            place = rows - self._k
            better &= scores >= np.partition(scores, place, axis=1)[:, place, None]
        owners, columns = np.nonzero(better)
        if not len(owners):
            return
        touched, owners = np.unique(owners, return_inverse=True)
        self._merge(touched, owners, scores[better], columns + first)

    def _merge(
        self,
        touched: NDArray[np.int64],
        owners: NDArray[np.int64],
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
    ) -> None:
        """Sort the new candidates of the ``touched`` questions among those they have."""
        held = np.repeat(np.arange(len(touched)), self._k)
        owners = np.concatenate([held, owners])
        scores = np.concatenate([self._scores[touched].reshape(-1), scores])
        rows = np.concatenate([self._rows[touched].reshape(-1), rows])
        # Stable, and what is held comes first: its rows are lower, and new ones are in order.
        order = np.lexsort((-scores, owners))
        starts = np.searchsorted(owners[order], np.arange(len(touched)))
        kept = order[(starts[:, None] + np.arange(self._k)).reshape(-1)]
        self._scores[touched] = scores[kept].reshape(-1, self._k)
        self._rows[touched] = rows[kept].reshape(-1, self._k)

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Give scores, float32, and rows, int64, both [questions, k]; -inf and -1 where none is."""
        return self._scores, self._rows
