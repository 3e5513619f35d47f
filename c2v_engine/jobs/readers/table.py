"""Rows of several columns from ``.jsonl`` or ``.parquet``, streamed, each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers import split_name
from c2v_engine.jobs.readers.columnar import ParquetReader
from c2v_engine.jobs.readers.jsonl import JsonLinesReader


class TableRow(NamedTuple):
    """One row: where it stands, as errors name it, and its values by column."""

    place: str
    values: dict[str, Any]


def read_rows(path: str | Path, columns: Sequence[str]) -> Iterator[TableRow]:
    """Give a file's rows in order.

    Args:
        path: ``.jsonl`` or ``.parquet``, each also ``.gz`` or ``.zst``.
        columns: what is read, where the file has it; a ``.parquet`` file must have the first. A
            row of ``.jsonl`` may hold more.

    Raises:
        InputError: the file can not be read, or a line is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: {'is a directory, expected a file' if path.is_dir() else 'no such file'}"
        )
    kind, compression = split_name(path)
    if kind == ".jsonl":
        yield from _json_rows(JsonLinesReader(path, compression, columns[0], None))
    elif kind == ".parquet":
        yield from _parquet_rows(ParquetReader(path, compression, columns[0], None), columns)
    else:
        raise InputError(f"{path}: expected a .jsonl or .parquet file, also .gz or .zst")


def _json_rows(reader: JsonLinesReader) -> Iterator[TableRow]:
    with reader:
        for line, values in reader.objects():
            place = reader.place(line.number, line.number)
            if b"\\u" in line.data:  # a lone surrogate can only come from an escape
                try:
                    json.dumps(values, ensure_ascii=False).encode("utf-8")
                except UnicodeEncodeError:
                    raise InputError(f"{place}: holds a lone surrogate, not valid text") from None
            yield TableRow(place, values)


def _parquet_rows(reader: ParquetReader, columns: Sequence[str]) -> Iterator[TableRow]:
    with reader:
        names = reader.schema.names
        wanted = [name for name in columns if name in names]
        number = 0
        for batch in reader.batches(wanted):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                raise InputError(f"{reader.path}, after row {number}: not valid UTF-8") from None
            for values in rows:
                number += 1
                yield TableRow(reader.place(number, None), values)
