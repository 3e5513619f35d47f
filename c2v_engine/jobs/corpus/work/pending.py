"""A block of rows whose embeddings are on their way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.corpus.records import Reject, RowBlock, Unit


class PendingBlock:
    """A block and those of its embeddings that are there.

    Args:
        unit: whose block it is.
        block: its rows.
        known: embeddings that need not be computed, by position in the block.

    Attributes:
        unit: as given.
        block: as given.
        known_bytes: of the rows that need not be computed, about.
    """

    def __init__(
        self, unit: Unit, block: RowBlock, known: dict[int, NDArray[Any]] | None = None
    ) -> None:
        self.unit = unit
        self.block = block
        self._known = known or {}
        self.known_bytes = sum(
            vector.nbytes + len(block.texts[place] or "") for place, vector in self._known.items()
        )
        # Positions that the engine is asked for, in order; the first ``_filled`` have come back.
        self._wanted = [
            place
            for place, text in enumerate(block.texts)
            if text is not None and place not in self._known
        ]
        self._filled = 0
        self._parts: list[NDArray[Any]] = []

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self._filled == len(self._wanted)

    @property
    def missing(self) -> int:
        """How many embeddings have not come back."""
        return len(self._wanted) - self._filled

    def texts(self) -> Iterator[str]:
        """Give the texts whose embeddings are missing, in order."""
        for place in self._wanted[self._filled :]:
            text = self.block.texts[place]
            assert text is not None
            yield text

    def fill(self, vectors: NDArray[Any]) -> int:
        """Take the first of ``vectors`` [texts, dimension] as the next missing; say how many."""
        count = min(len(vectors), self.missing)
        if count:
            self._parts.append(vectors[:count])
            self._filled += count
        return count

    def reject(self, number: int, reason: str) -> Reject:
        """Give up the ``number``-th missing text, counted from 0."""
        place = self._wanted.pop(self._filled + number)
        key = self.block.columns.column(0)[place].as_py()
        where = self.block.place(place)
        found = Reject(self.block.first_row + place, key, where, reason)
        self.block.texts[place] = None
        self.block.rejects[place] = found
        return found

    def place_of(self, number: int) -> str:
        """Say where the ``number``-th missing text stands."""
        return self.block.place(self._wanted[self._filled + number])

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Which rows have an embedding, bool [rows]; None where all do."""
        if not self.block.rejects:
            return None
        return np.array([text is not None for text in self.block.texts], dtype=bool)

    def computed(self) -> tuple[list[str], NDArray[Any] | None]:
        """Texts that the engine was asked for, with their embeddings."""
        texts = [text for place in self._wanted if (text := self.block.texts[place]) is not None]
        return texts, self._joined()

    def embeddings(self, dimension: int, dtype: Any) -> NDArray[Any]:
        """All embeddings of the rows that have one, [rows, dimension], in order."""
        joined = self._joined()
        if not self._known:
            return np.empty((0, dimension), dtype) if joined is None else joined
        result = np.empty((len(self.block), dimension), dtype)
        for place, vector in self._known.items():
            result[place] = vector
        if joined is not None:
            result[self._wanted] = joined
        valid = self.valid
        return result if valid is None else result[valid]

    def _joined(self) -> NDArray[Any] | None:
        if not self._parts:
            return None
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]
