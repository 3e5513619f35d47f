"""Rows of several columns from ``.jsonl`` or ``.parquet``, streamed, each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import one_line
from c2v_engine.jobs.readers.source import ByteSource, Line

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BATCH_ROWS = 1024


class TableRow(NamedTuple):
    """One row: where it stands, as errors name it, and its values by column."""

    place: str
    values: dict[str, Any]


def read_rows(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[TableRow]:
    """Give a file's rows in order.

    Args:
        path: a ``.jsonl`` file, also ``.gz`` or ``.zst``, or a ``.parquet`` file.
        columns: the columns to read, where the file has them; None for all. A ``.jsonl`` row may
            hold more.

    Raises:
        InputError: the file can not be read, or a line is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: {'is a directory, expected a file' if path.is_dir() else 'no such file'}"
        )
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind == ".jsonl":
        return _json_rows(path, compression)
    if kind == ".parquet" and compression is None:
        return _parquet_rows(path, columns)
    raise InputError(f"{path}: expected a .jsonl file, also .gz or .zst, or a .parquet file")


def _json_rows(path: Path, compression: str | None) -> Iterator[TableRow]:
    source = ByteSource(path, compression)
    try:
        for line in source.lines():
            if line.data.strip():
                yield TableRow(f"{path}, line {line.number}", _json_object(path, source, line))
    finally:
        source.close()


def _json_object(path: Path, source: ByteSource, line: Line) -> dict[str, Any]:
    text = source.decode(line)
    place = f"{path}, line {line.number}"
    try:
        values = json.loads(text)
        if b"\\u" in line.data:  # a lone surrogate can only come from an escape
            json.dumps(values, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        reason = f"{error.msg.removesuffix(' at')} at character {error.colno}"
        raise InputError(f"{place}: broken JSON: {reason}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{place}: broken JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{place}: the line is no JSON object")
    return values


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[TableRow]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else [name for name in columns if name in names]
            number = 0
            # Without one of the columns a row still says which ones the file has.
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted or names):
                for values in batch.to_pylist():
                    number += 1
                    yield TableRow(f"{path}, row {number}", values)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {one_line(error)}") from None
