"""Rows of a text format, gathered into a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from c2v_engine.jobs.corpus.records import Reject, RowBlock
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.corpus.source.plan import Plan


class Gathered:
    """Rows that are to become a block, added in order.

    Args:
        plan: the job's.
        file: that the rows stand in.
        first_row: counted from 0 in the whole input.
        file_row: the same row in the file, from 0.
        lines: on which the rows start.

    Attributes:
        texts: of the rows so far.
        ids: likewise; empty where they are the rows' numbers.
        kept: values of the columns that are passed through, a list for each column.
    """

    def __init__(
        self, plan: Plan, file: InputFile, first_row: int, file_row: int, lines: Sequence[int]
    ) -> None:
        self._plan = plan
        self._first_row = first_row
        self._numbered = plan.id_column is None
        self.texts: list[str | None] = []
        self.ids: list[str | None] = []
        self.kept: list[list[str | None]] = [[] for _ in plan.keep]
        self._block = RowBlock(first_row, self.texts, None, {}, file.name, file_row, lines)

    def add(self, text: str, key: str | None, kept: Sequence[str | None]) -> None:
        """Take a row."""
        self.texts.append(text)
        if not self._numbered:
            self.ids.append(key)
        for values, value in zip(self.kept, kept, strict=True):
            values.append(value)

    def reject(self, reason: str, key: str | None = None) -> None:
        """Take a row that can not be used."""
        position = len(self.texts)
        self.add("", key, [None] * len(self.kept))
        self.texts[position] = None
        row = self._first_row + position
        found = row if self._numbered else key
        self._block.rejects[position] = Reject(row, found, self._block.place(position), reason)

    def clear(self) -> None:
        """Forget all rows."""
        for values in (self.texts, self.ids, *self.kept):
            values.clear()
        self._block.rejects.clear()

    def block(self) -> RowBlock:
        """Give the block.

        Raises:
            UnicodeEncodeError: an id or a kept value holds a lone surrogate.
        """
        if self._numbered:
            numbers = np.arange(self._first_row, self._first_row + len(self.texts), dtype=np.int64)
            ids = pa.array(numbers)
        else:
            ids = pa.array(self.ids, pa.string())
        kept = [pa.array(values, pa.string()) for values in self.kept]
        self._block.columns = make_columns(self._plan.schema, ids, kept)
        return self._block


def make_columns(schema: Any, ids: Any, kept: list[Any]) -> Any:
    """Put a block's columns together; the id is nullable where a rejected row has none."""
    if ids.null_count and not schema.field(0).nullable:
        schema = schema.set(0, schema.field(0).with_nullable(True))
    return pa.RecordBatch.from_arrays([ids, *kept], schema=schema)
