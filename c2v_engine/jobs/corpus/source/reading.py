"""Blocks of rows of a unit, read from where it begins; bad rows stop the job or are set aside."""

from __future__ import annotations

from collections.abc import Iterator

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.records import RowBlock, Segment, Unit
from c2v_engine.jobs.corpus.source.line_rows import (
    CsvRowsReader,
    JsonLinesRows,
    LinesReader,
    TextRows,
)
from c2v_engine.jobs.corpus.source.plan import Plan
from c2v_engine.jobs.corpus.source.table_rows import TableRows

_READERS: dict[str, type[LinesReader] | type[TableRows]] = {
    "txt": TextRows,
    "jsonl": JsonLinesRows,
    "csv": CsvRowsReader,
    "parquet": TableRows,
    "arrow": TableRows,
}


class UnitReader:
    """Reads the units of a plan, in any order; the last file stays open for the next unit.

    Args:
        plan: the job's.
        on_error: ``fail``: a bad row is an error; otherwise it is a reject of its block.
    """

    def __init__(self, plan: Plan, on_error: str = "fail") -> None:
        self._plan = plan
        self._fail = on_error == "fail"
        self._open: tuple[int, LinesReader | TableRows] | None = None

    def read(self, unit: Unit) -> Iterator[RowBlock]:
        """Give a unit's rows in blocks, in order.

        Raises:
            InputError: a row that can not be used, where that is an error; or a file that can not
                be read, always. The message names the file and the row.
        """
        first = unit.first_row
        try:
            for segment in unit.segments:
                yield from self._blocks(segment, first)
                first += segment.rows
        except Exception:
            self.close()  # who tries again does not go on from where something was lost
            raise

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        found = 0
        for block in self._reader(segment.file).blocks(segment, first):
            if self._fail and block.rejects:
                reject = block.rejects[min(block.rejects)]
                raise InputError(f"{reject.place}: {reject.reason}")
            found += len(block)
            yield block
        if found != segment.rows:
            raise InputError(
                f"{self._plan.files[segment.file].name}: has {segment.first_row + found:,} "
                f"rows, expected {segment.first_row + segment.rows:,} or more: it has changed"
            )

    def _reader(self, number: int) -> LinesReader | TableRows:
        if self._open is None or self._open[0] != number:
            self.close()
            file = self._plan.files[number]
            self._open = number, _READERS[file.format](file, self._plan)
        return self._open[1]


def empty_columns(plan: Plan) -> list[str]:
    """Find the kept columns that hold nothing in the first rows of JSON lines: misspelt, perhaps.

    Other formats say which columns they have, so that a wrong name is refused.
    """
    if not plan.keep or plan.files[plan.units[0].segments[0].file].format != "jsonl":
        return []
    reader = UnitReader(plan, "skip")
    try:
        block = next(iter(reader.read(plan.units[0])))
    finally:
        reader.close()
    kept = block.columns.columns[1:]
    found = zip(plan.keep, kept, strict=True)
    return [name for name, column in found if column.null_count == len(column)]
