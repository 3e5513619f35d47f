"""Training data: files of pairs, checked row by row before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from c2v_engine.errors import InputError
from c2v_engine.training.config import DataConfig, data_set_name

COLUMNS = ("query", "positive", "negative")
REQUIRED = COLUMNS[:2]
ROWS_SHOWN = 5
BLOCK_ROWS = 4096


class DataSet(NamedTuple):
    """A checked data set.

    Attributes:
        name: what metrics and errors call it.
        table: a memory-mapped ``datasets.Dataset`` of ``query``, ``positive`` and, where the file
            has it, ``negative``.
        repeated: rows that repeat an earlier pair.
    """

    name: str
    table: Any
    repeated: int


def read_data_set(config: DataConfig, folder: Path) -> DataSet:
    """Check every row of a file and write its columns where training maps them from.

    Args:
        config: the file and its options.
        folder: where the mapped copy is written, as ``<name>.arrow``.

    Raises:
        InputError: the file can not be read, lacks a column, has fewer than two rows, or has rows
            that can not be trained on; the message names the first of them by file and row.
    """
    from datasets import Dataset

    path, name = Path(config.path), data_set_name(config)
    columns: tuple[str, ...] | None = None
    bad: list[str] = []
    seen: set[int] = set()
    rows = found = repeated = 0
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.arrow"
    writer = None
    try:
        for block in _blocks(_rows(path, config.max_rows)):
            columns = columns or _columns(block[0], path)
            for row in block:
                reason = _reason(row.values, columns)
                if reason is not None:
                    found += 1
                    bad += [f"{row.place}: {reason}"] if len(bad) < ROWS_SHOWN else []
            if bad:
                continue
            table = pa.table({column: [row.values[column] for row in block] for column in columns})
            writer = writer or pa.ipc.new_stream(str(target), table.schema)
            writer.write_table(table)
            rows += len(block)
            for row in block:
                key = hash(tuple(row.values[column] for column in columns))
                repeated += key in seen
                seen.add(key)
    finally:
        if writer is not None:
            writer.close()
    if bad:
        more = f"; and {found - len(bad):,} more rows" if found > len(bad) else ""
        raise InputError("; ".join(bad) + more)
    if rows < 2:
        count = "no row" if rows == 0 else "one row"
        raise InputError(f"{path}: holds {count}: a pair needs others as its negatives")
    return DataSet(name, Dataset.from_file(str(target)), repeated)


class _Row(NamedTuple):
    place: str
    values: dict[str, Any]


def _reason(values: dict[str, Any], columns: Sequence[str]) -> str | None:
    """Why a row can not be trained on, if it can not."""
    for column in columns:
        value = values.get(column)
        if column not in values:
            return f"no column {column!r}; the columns are {', '.join(map(repr, values))}"
        if not isinstance(value, str):
            kind = "null" if value is None else type(value).__name__
            return f"column {column!r} is {kind}, expected a text"
        if not value.strip():
            return f"column {column!r} is empty"
    if "negative" in columns and values["negative"].split() == values["positive"].split():
        return "the negative equals the positive"
    return None


def _columns(first: _Row, path: Path) -> tuple[str, ...]:
    missing = [column for column in REQUIRED if column not in first.values]
    if missing:
        known = ", ".join(map(repr, first.values)) or "none"
        raise InputError(f"{path}: no column {missing[0]!r}; the columns are {known}")
    return tuple(column for column in COLUMNS if column in first.values)


def _blocks(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    block: list[_Row] = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block


def _rows(path: Path, max_rows: int | None) -> Iterator[_Row]:
    from itertools import islice

    from c2v_engine.jobs.readers.table import read_rows

    for row in islice(read_rows(path, COLUMNS), max_rows):
        yield _Row(row.place, row.values)
