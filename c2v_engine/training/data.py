"""Training data: files of pairs, checked row by row before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.table import TableRow, read_rows
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
        digest: of all rows in their order.
    """

    name: str
    table: Any
    digest: str

    @property
    def rows(self) -> int:
        """How many pairs there are."""
        return len(self.table)


def read_data_set(config: DataConfig, folder: Path) -> DataSet:
    """Check every row of a file and write its columns where training maps them from.

    Args:
        config: the file and its options.
        folder: where the mapped copy is written, as ``<name>.arrow``.

    Raises:
        InputError: the file can not be read, lacks a column, has fewer than two rows, or has rows
            that can not be trained on; the message names the first of them by file and row.
    """
    path, name = Path(config.path), data_set_name(config)
    columns: tuple[str, ...] | None = None
    bad: list[str] = []
    digest = blake2b(digest_size=16)
    distinct: dict[str, set[str]] = {column: set() for column in REQUIRED}
    rows = found = 0
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.arrow"
    # Beside its place first: another process may have the old file mapped.
    beside = folder / f"{name}.arrow.new"
    writer = None
    try:
        for block in _blocks(islice(read_rows(path, COLUMNS), config.max_rows)):
            columns = columns or _columns(block[0], path)
            for row in block:
                reason = _reason(row.values, columns)
                if reason is not None:
                    found += 1
                    bad += [f"{row.place}: {reason}"] if len(bad) < ROWS_SHOWN else []
            if bad:
                continue
            table = pa.table({column: [row.values[column] for row in block] for column in columns})
            writer = writer or pa.ipc.new_stream(str(beside), table.schema)
            writer.write_table(table)
            rows += len(block)
            for column, texts in distinct.items():
                if len(texts) < 2:
                    texts.update(row.values[column] for row in block)
            for row in block:
                digest.update("\0".join(row.values[column] for column in columns).encode())
                digest.update(b"\0\0")
    finally:
        if writer is not None:
            writer.close()
    if bad:
        more = f"; and {found - len(bad):,} more rows" if found > len(bad) else ""
        raise InputError("; ".join(bad) + more)
    if rows < 2:
        count = "no row" if rows == 0 else "one row"
        raise InputError(f"{path}: holds {count}: a pair needs others as its negatives")
    for column, texts in distinct.items():
        if len(texts) < 2:
            raise InputError(f"{path}: every row has the same {column}, and no other as negative")
    beside.replace(target)
    (folder / f"{name}.digest").write_text(digest.hexdigest(), encoding="utf-8")
    return map_data_set(config, folder)


def map_data_set(config: DataConfig, folder: Path) -> DataSet:
    """Map what ``read_data_set`` wrote, in this process or another."""
    from datasets import Dataset

    name = data_set_name(config)
    digest = (folder / f"{name}.digest").read_text(encoding="utf-8")
    return DataSet(name, Dataset.from_file(str(folder / f"{name}.arrow")), digest)


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
    extra = [column for column in COLUMNS if column in values and column not in columns]
    if extra:
        return f"has a column {extra[0]!r}, which the first row has not"
    if "negative" in columns and values["negative"].split() == values["positive"].split():
        return "the negative equals the positive"
    return None


def _columns(first: TableRow, path: Path) -> tuple[str, ...]:
    missing = [column for column in REQUIRED if column not in first.values]
    if missing:
        known = ", ".join(map(repr, first.values)) or "none"
        raise InputError(f"{path}: no column {missing[0]!r}; the columns are {known}")
    return tuple(column for column in COLUMNS if column in first.values)


def _blocks(rows: Iterator[TableRow]) -> Iterator[list[TableRow]]:
    block: list[TableRow] = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block
