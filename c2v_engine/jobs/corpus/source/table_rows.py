"""Blocks of rows of Parquet and Arrow files, which stay in columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from c2v_engine.jobs.corpus.records import Reject, RowBlock, Segment
from c2v_engine.jobs.corpus.source.gathering import make_columns
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.corpus.source.plan import Plan
from c2v_engine.jobs.corpus.source.tables import open_table

_BLOCK_BYTES = 4 * 1024 * 1024


class TableRows:
    """Reads segments of one file; as ``LinesReader``."""

    def __init__(self, file: InputFile, plan: Plan) -> None:
        self.file = file
        self.plan = plan
        self._table = open_table(file)

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        """Give a segment's rows; as ``LinesReader.blocks``.

        Raises:
            InputError: the file is damaged.
        """
        plan = self.plan
        names = [plan.column, *([plan.id_column] if plan.id_column else []), *plan.keep]
        wanted = list(dict.fromkeys(names))
        row = segment.first_row
        for whole in self._table.batches(wanted, segment.first_row, segment.rows):
            for batch in _pieces(whole):
                yield self._block(batch, first + row - segment.first_row, row)
                row += len(batch)

    def _block(self, batch: Any, first: int, row: int) -> RowBlock:
        plan, schema = self.plan, self.plan.schema
        block = RowBlock(first, [], None, {}, self.file.name, row)
        texts, bad = _texts(_column(batch, plan.column), plan.column)
        if plan.id_column is None:
            ids = pa.array(np.arange(first, first + len(batch), dtype=np.int64))
        else:
            ids = _column(batch, plan.id_column).cast(schema.field(0).type)
            ids, wrong = _valid(ids, plan.id_column)
            bad |= wrong
            if ids.null_count:
                expected = f"column {plan.id_column!r} is null, expected a string or integer"
                bad = {**dict.fromkeys(_nulls(ids), expected), **bad}
        kept = []
        for name, field in zip(plan.keep, list(schema)[1:], strict=True):
            values, wrong = _valid(_column(batch, name).cast(field.type), name)
            kept.append(values)
            bad |= wrong
        for place, reason in sorted(bad.items()):
            texts[place] = None
            key = ids[place].as_py()
            block.rejects[place] = Reject(first + place, key, block.place(place), reason)
        block.texts = texts
        block.columns = make_columns(schema, ids, kept)
        return block


def _pieces(batch: Any) -> Iterator[Any]:
    """Halve a batch until the parts are small, or single rows."""
    if batch.nbytes <= _BLOCK_BYTES or len(batch) == 1:
        yield batch
        return
    half = len(batch) // 2
    yield from _pieces(batch.slice(0, half))
    yield from _pieces(batch.slice(half))


def _column(batch: Any, name: str) -> Any:
    array = batch.column(batch.schema.get_field_index(name))
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _nulls(array: Any) -> list[int]:
    return [place for place, null in enumerate(array.is_null().to_pylist()) if null]


def _texts(array: Any, column: str) -> tuple[list[str | None], dict[int, str]]:
    """The values of a string column, and what is wrong with some."""
    bad = {}
    if array.null_count:
        bad = dict.fromkeys(_nulls(array), f"column {column!r} is null, expected a string")
    try:
        return array.to_pylist(), bad
    except UnicodeDecodeError:
        pass
    texts: list[str | None] = []
    for place in range(len(array)):
        try:
            texts.append(array[place].as_py())
        except UnicodeDecodeError as error:
            texts.append(None)
            bad[place] = f"column {column!r} is not valid UTF-8 (byte {error.start} of the text)"
    return texts, bad


def _valid(array: Any, column: str) -> tuple[Any, dict[int, str]]:
    """A column with nulls for what is broken in it, and what that is."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return array, {}
    bad = {}
    for place in range(len(array)):
        try:
            array.slice(place, 1).validate(full=True)
        except pa.ArrowInvalid:
            bad[place] = f"column {column!r} is not valid UTF-8"
    places = [None if place in bad else place for place in range(len(array))]
    return array.take(pa.array(places, pa.int64())), bad
