"""Texts out, ids and places kept: what ties a block of embeddings back to its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

from c2v_engine.errors import InputError, TextError
from c2v_engine.jobs.readers import Reader


class TextFeed:
    """Hands a reader's texts to the engine and keeps only the ids of the rows still inside it.

    The first row is read at once, so that a file that can not be used is refused before a model
    is loaded.

    Args:
        reader: the file.
        limit: read at most so many rows.

    Attributes:
        pulled: how many rows have been handed out.
        taken: how many of them have come back.

    Raises:
        InputError: the first row can not be used, or there is none.
    """

    def __init__(self, reader: Reader, limit: int | None = None) -> None:
        self._reader = reader
        self._pending: deque[tuple[str | int, int | None]] = deque()
        self.pulled = 0
        self.taken = 0
        records = iter(reader)
        first = next(records, None)
        if first is None:
            raise InputError(f"{reader.path}: no rows: there is no text in it")
        self._records = islice(chain([first], records), limit)

    def texts(self) -> Iterator[str]:
        """Give the texts in order, to be pulled by the thread that takes the ids.

        Raises:
            InputError: a row can not be used.
        """
        for text, key, line in self._records:
            self._pending.append((key, line))
            self.pulled += 1
            yield text

    def take(self, rows: int) -> list[str | int]:
        """Give the ids of the next ``rows`` rows that came back, and forget them."""
        self.taken += rows
        return [self._pending.popleft()[0] for _ in range(rows)]

    def place_error(self, error: TextError) -> InputError:
        """Turn the engine's error about a text into one that names file, row and reason."""
        held = error.row - self.taken
        line = self._pending[held][1] if 0 <= held < len(self._pending) else None
        return self._reader.bad_row(error.row + 1, line, error.reason)
