"""What travels between the parts of a corpus job: units, blocks of rows, what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one input file.

    Attributes:
        file: which one, a position in the plan's list.
        first_row: its first row, counted from 0 in the file.
        rows: how many.
        offset: of that row's first byte in the decompressed file; None where rows are found
            without it (Parquet, Arrow).
        line: on which that row starts, counted from 1; None where there are no lines.
    """

    file: int
    first_row: int
    rows: int
    offset: int | None = None
    line: int | None = None


@dataclass(frozen=True)
class Unit:
    """Consecutive rows of the whole input: what becomes one shard.

    Attributes:
        number: which one, from 0; it names the shard.
        first_row: its first row, counted from 0 in the whole input.
        segments: where its rows stand, in order.
    """

    number: int
    first_row: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True)
class Reject:
    """A row that was not embedded.

    Attributes:
        row: counted from 0 in the whole input.
        id: its id, where it could be read.
        place: file and row, as errors name them.
        reason: what is wrong with it.
    """

    row: int
    id: str | int | None
    place: str
    reason: str


@dataclass
class RowBlock:
    """Consecutive rows of a unit, some hundreds of them.

    Attributes:
        first_row: counted from 0 in the whole input.
        texts: one for each row; None for a row that was rejected.
        columns: a pyarrow ``RecordBatch`` of as many rows: ``id`` first, then the columns that are
            passed through. A rejected row holds what could be read of it, else nulls.
        rejects: rows whose text is None, by their positions in the block.
        file: the file's name, as errors give it.
        file_row: the first row's number in the file, from 0.
        lines: on which the rows start; None where there are no lines.
    """

    first_row: int
    texts: list[str | None]
    columns: Any
    rejects: dict[int, Reject] = field(default_factory=dict)
    file: str = ""
    file_row: int = 0
    lines: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, position: int) -> str:
        """Say where a row stands: file, and row or line, counted from 1."""
        row = self.file_row + position + 1
        line = None if self.lines is None else self.lines[position]
        if line is None:
            return f"{self.file}, row {row}"
        if line == row:
            return f"{self.file}, line {line}"
        return f"{self.file}, row {row} (line {line})"


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard, as it was written and synced.

    Attributes:
        name: in the output folder, in the end.
        size: in bytes.
        sha256: of its bytes, in hexadecimal digits.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class UnitDone:
    """What became of a unit.

    Attributes:
        unit: its number.
        first_row: of the input, counted from 0.
        rows: of the input.
        written: rows of the shard: all, but for those that are skipped.
        files: of the shard.
        rejects: rows that were not embedded.
        tokens: decoder rows computed while it was under way.
        seconds: for which it was under way.
    """

    unit: int
    first_row: int
    rows: int
    written: int
    files: tuple[ShardFile, ...]
    rejects: tuple[Reject, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
