"""What every reader gives: rows, and words for where a row stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from c2v_engine.errors import InputError

DEFAULT_COLUMN = "text"
MAX_NAMES = 20


class Record(NamedTuple):
    """One row: its text, its id, and the line where it starts (counted from 1, None in Parquet)."""

    text: str
    id: str | int
    line: int | None


class RowError(InputError):
    """One row that can not be used.

    Attributes:
        place: file and row.
        reason: what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class Reader(ABC):
    """One file of texts. It can be iterated once, and gives its rows in the file's order.

    Attributes:
        path: the file, as the user named it.
        id_type: the pyarrow type of the ids.
        id_column: the column that the ids come from, None when they are row numbers.
        rows: how many rows the file has, where the format says so without reading it.
    """

    path: Path
    id_type: Any
    id_column: str | None = None
    rows: int | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Record]:
        """Give the rows in order.

        Raises:
            InputError: a row can not be used. The message names file, row and reason.
        """

    @abstractmethod
    def fraction(self) -> float | None:
        """Give the part of the file read so far, between 0 and 1, None where it has no size."""

    @abstractmethod
    def close(self) -> None:
        """Close the file. Closing twice is fine."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def place(self, row: int, line: int | None) -> str:
        """Say where a row stands. ``row`` and ``line`` are counted from 1."""
        if line is None:
            return f"{self.path}, row {row}"
        if line == row:
            return f"{self.path}, line {line}"
        return f"{self.path}, row {row} (line {line})"

    def bad_row(self, row: int, line: int | None, reason: str) -> InputError:
        """Make the error that names file, row and reason."""
        return RowError(self.place(row, line), reason)


def missing_column(column: str, names: Iterable[str]) -> str:
    """Say which column is missing and which ones there are."""
    known = [repr(name) for name in names]
    if len(known) > MAX_NAMES:
        known = [*known[:MAX_NAMES], f"and {len(known) - MAX_NAMES} more"]
    return f"no column {column!r}; the columns are {', '.join(known) or 'none'}"


def one_line(error: BaseException) -> str:
    """Give the first line of an error's message, without a closing full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .")
