"""Readers: one file of texts, streamed row by row in bounded memory.

``open_reader`` picks the reader by the file's name: ``.txt``, ``.jsonl``, ``.csv`` or ``.parquet``,
each also compressed as ``.gz`` or ``.zst``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import Reader, Record

__all__ = ["FORMATS", "Reader", "Record", "open_reader", "split_name"]

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def open_reader(
    path: str | os.PathLike[str], column: str | None = None, id_column: str | None = None
) -> Reader:
    """Open a file of texts.

    Args:
        path: the file; its name says the format and the compression.
        column: the column with the texts; ``"text"`` when none is named. A ``.txt`` file has none.
        id_column: the column with the ids; without one a row's id is its number, from 0.

    Raises:
        InputError: the file is missing, is a directory, can not be opened, has an unknown
            extension, or lacks a column.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can not be opened: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a directory, expected a file")
    extension, compression = split_name(path)
    if extension == ".txt":
        from c2v_engine.jobs.readers.text import TextReader

        return TextReader(path, compression, column, id_column)
    if extension == ".jsonl":
        from c2v_engine.jobs.readers.jsonl import JsonLinesReader

        return JsonLinesReader(path, compression, column, id_column)
    if extension == ".csv":
        from c2v_engine.jobs.readers.delimited import CsvReader

        return CsvReader(path, compression, column, id_column)
    from c2v_engine.jobs.readers.columnar import ParquetReader

    return ParquetReader(path, compression, column, id_column)


def split_name(path: Path) -> tuple[str, str | None]:
    """Give a file's format, as in ``FORMATS``, and its compression: gzip, zstd or None.

    Raises:
        InputError: the extension is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        given = f"unknown extension {path.suffix!r}" if path.suffix else "no extension"
        if compression is not None:
            given = f"no format before {path.suffix!r}" if not suffixes else given
        known = ", ".join(FORMATS)
        raise InputError(f"{path}: {given}; known are {known}, each also with .gz or .zst")
    return suffixes[-1], compression
